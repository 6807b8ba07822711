/** The monitor itself, character devices and objects. */
import { part } from './types.ts';

const CHARDEV = { 'logfile?': 'str', 'logappend?': 'bool' } as const;

const INET = {
  host: 'str',
  port: 'str',
  'numeric?': 'bool',
  'to?': 'uint16',
  'ipv4?': 'bool',
  'ipv6?': 'bool',
  'keep-alive?': 'bool',
} as const;
const UNIX = { path: 'str', 'abstract?': 'bool', 'tight?': 'bool' } as const;

export const CONTROL = part({
  enums: {
    QMPCapability: ['oob'],
    SchemaMetaType: ['builtin', 'enum', 'array', 'object', 'alternate', 'command', 'event'],
    DataFormat: ['utf8', 'base64'],
    SocketAddressType: ['inet', 'unix', 'vsock', 'fd'],
    ChardevBackendKind: ['file', 'pipe', 'socket', 'null', 'stdio', 'ringbuf', 'memory'],
    MonitorMode: ['readline', 'control'],
  },
  structs: {
    VersionTriple: { major: 'int', minor: 'int', micro: 'int' },
    VersionInfo: { qemu: 'VersionTriple', package: 'str' },
    CommandInfo: { name: 'str' },
    ChardevInfo: { label: 'str', filename: 'str', 'frontend-open': 'bool' },
    ChardevBackendInfo: { name: 'str' },
    ChardevReturn: { 'pty?': 'str' },
    InetSocketAddress: INET,
    UnixSocketAddress: UNIX,
    VsockSocketAddress: { cid: 'str', port: 'str' },
    String: { str: 'str' },
    InetSocketAddressWrapper: { data: 'InetSocketAddress' },
    ChardevFile: { ...CHARDEV, out: 'str', 'in?': 'str', 'append?': 'bool' },
    ChardevHostdev: { ...CHARDEV, device: 'str' },
    ChardevSocket: {
      ...CHARDEV,
      addr: 'SocketAddressLegacy',
      'tls-creds?': 'str',
      'tls-authz?': 'str',
      'server?': 'bool',
      'wait?': 'bool',
      'nodelay?': 'bool',
      'telnet?': 'bool',
      'reconnect?': 'int',
    },
    ChardevStdio: { ...CHARDEV, 'signal?': 'bool' },
    ChardevCommon: CHARDEV,
    ChardevRingbuf: { ...CHARDEV, 'size?': 'int' },
    MonitorOptions: { 'id?': 'str', 'mode?': 'MonitorMode', 'pretty?': 'bool', chardev: 'str' },
    ObjectPropertyInfo: { name: 'str', type: 'str', 'description?': 'str', 'default-value?': 'any' },
    ObjectTypeInfo: { name: 'str', 'abstract?': 'bool', 'parent?': 'str' },
  },
  unions: {
    SocketAddress: {
      tag: 'type',
      base: { type: 'SocketAddressType' },
      branches: { inet: INET, unix: UNIX, vsock: { cid: 'str', port: 'str' }, fd: { str: 'str' } },
    },
    SocketAddressLegacy: {
      tag: 'type',
      base: { type: 'SocketAddressType' },
      branches: {
        inet: { data: 'InetSocketAddress' },
        unix: { data: 'UnixSocketAddress' },
        vsock: { data: 'VsockSocketAddress' },
        fd: { data: 'String' },
      },
    },
    ChardevBackend: {
      tag: 'type',
      base: { type: 'ChardevBackendKind' },
      branches: {
        file: { data: 'ChardevFile' },
        pipe: { data: 'ChardevHostdev' },
        socket: { data: 'ChardevSocket' },
        null: { data: 'ChardevCommon' },
        stdio: { data: 'ChardevStdio' },
        ringbuf: { data: 'ChardevRingbuf' },
        memory: { data: 'ChardevRingbuf' },
      },
    },
  },
  commands: {
    qmp_capabilities: { data: { 'enable?': '[QMPCapability]' } },
    'query-version': { returns: 'VersionInfo' },
    'query-commands': { returns: '[CommandInfo]' },
    'query-qmp-schema': { returns: '[SchemaInfo]' },
    quit: {},
    'query-chardev': { returns: '[ChardevInfo]' },
    'query-chardev-backends': { returns: '[ChardevBackendInfo]' },
    'chardev-add': { data: { id: 'str', backend: 'ChardevBackend' }, returns: 'ChardevReturn' },
    'chardev-change': { data: { id: 'str', backend: 'ChardevBackend' }, returns: 'ChardevReturn' },
    'chardev-remove': { data: { id: 'str' } },
    'chardev-send-break': { data: { id: 'str' } },
    'ringbuf-write': { data: { device: 'str', data: 'str', 'format?': 'DataFormat' } },
    'ringbuf-read': { data: { device: 'str', size: 'int', 'format?': 'DataFormat' }, returns: 'str' },
    'object-add': { data: 'ObjectOptions' },
    'object-del': { data: { id: 'str' } },
    'qom-list': { data: { path: 'str' }, returns: '[ObjectPropertyInfo]' },
    'qom-get': { data: { path: 'str', property: 'str' }, returns: 'any' },
    'qom-set': { data: { path: 'str', property: 'str', value: 'any' } },
    'qom-list-types': { data: { 'implements?': 'str', 'abstract?': 'bool' }, returns: '[ObjectTypeInfo]' },
    'qom-list-properties': { data: { typename: 'str' }, returns: '[ObjectPropertyInfo]' },
  },
  events: {
    VSERPORT_CHANGE: { id: 'str', open: 'bool' },
  },
});
