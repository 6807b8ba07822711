/** Ways out: the NBD server and block exports. */
import { part } from './types.ts';

export const EXPORTS = part({
  enums: {
    BlockExportType: ['nbd', 'vhost-user-blk'],
    BlockExportRemoveMode: ['safe', 'hard'],
  },
  structs: {
    BlockExportInfo: { id: 'str', type: 'BlockExportType', 'node-name': 'str', 'shutting-down': 'bool' },
    NbdServerOptions: {
      addr: 'SocketAddress',
      'tls-creds?': 'str',
      'tls-authz?': 'str',
      'max-connections?': 'uint32',
      'handshake-max-seconds?': 'uint32',
    },
  },
  unions: {
    BlockExportOptions: {
      tag: 'type',
      base: {
        type: 'BlockExportType',
        id: 'str',
        'fixed-iothread?': 'bool',
        'iothread?': 'str',
        'node-name': 'str',
        'writable?': 'bool',
        'writethrough?': 'bool',
        'allow-inactive?': 'bool',
      },
      branches: {
        nbd: {
          'name?': 'str',
          'description?': 'str',
          'bitmaps?': '[BlockDirtyBitmapOrStr]',
          'allocation-depth?': 'bool',
        },
        'vhost-user-blk': { addr: 'SocketAddress', 'logical-block-size?': 'size', 'num-queues?': 'uint16' },
      },
    },
  },
  commands: {
    'nbd-server-start': {
      data: {
        addr: 'SocketAddressLegacy',
        'tls-creds?': 'str',
        'tls-authz?': 'str',
        'max-connections?': 'uint32',
        'handshake-max-seconds?': 'uint32',
      },
    },
    'nbd-server-add': {
      data: { 'name?': 'str', 'description?': 'str', device: 'str', 'writable?': 'bool', 'bitmap?': 'str' },
      features: ['deprecated'],
    },
    'nbd-server-remove': { data: { name: 'str', 'mode?': 'BlockExportRemoveMode' }, features: ['deprecated'] },
    'nbd-server-stop': {},
    'block-export-add': { data: 'BlockExportOptions' },
    'block-export-del': { data: { id: 'str', 'mode?': 'BlockExportRemoveMode' } },
    'query-block-exports': { returns: '[BlockExportInfo]' },
  },
  events: {
    BLOCK_EXPORT_DELETED: { id: 'str' },
  },
});
