/** `--chardev socket,id=c,path=...`: flat names, made into what `chardev-add` takes. */
import { QmpError } from '../../qmp/errors.ts';
import { isObject, type Json, type JsonObject } from '../../qmp/json.ts';
import { CHARDEVS_HERE } from '../../qmp/schema/control.ts';

/** All names that there are, for whichever type: one that another type has is not looked at. */
const NAMES = new Set([
  ...['abstract', 'append', 'backend', 'chardev', 'clipboard', 'cols', 'debug', 'delay', 'fd', 'height', 'host', 'id'],
  ...['input-path', 'ipv4', 'ipv6', 'localaddr', 'localport', 'logappend', 'logfile', 'mouse', 'mux', 'name'],
  ...['nodelay', 'path', 'port', 'reconnect', 'reconnect-ms', 'rows', 'server', 'signal', 'size', 'telnet', 'tight'],
  ...['tls-authz', 'tls-creds', 'tn3270', 'to', 'wait', 'websocket', 'width'],
]);
const ID = /^[A-Za-z][A-Za-z0-9._-]*$/;

export interface ChardevOption {
  readonly id: string;
  /** As `chardev-add` takes it, with texts for values. */
  readonly backend: JsonObject;
  /** Several users are to have it. */
  readonly mux: boolean;
}

/** Throws QmpError. */
export function chardevOption(given: JsonObject): ChardevOption {
  const wrong = Object.entries(given).find(([name, value]) => !NAMES.has(name) || isObject(value));
  if (wrong) throw new QmpError(`Invalid parameter '${wrong[0]}'`);
  const { backend: type, id } = given;
  if (id === undefined) throw new QmpError('chardev: no id specified');
  if (typeof id !== 'string' || !ID.test(id)) {
    throw new QmpError(
      "Parameter 'id' expects an identifier\n" +
        "Identifiers consist of letters, digits, '-', '.', '_', starting with a letter.",
    );
  }
  if (typeof type !== 'string') throw new QmpError(`chardev: "${id}" missing backend`);
  if (!(CHARDEVS_HERE as readonly string[]).includes(type)) {
    throw new QmpError(`'${type}' is not a valid char driver name`);
  }
  const { mux = 'off' } = given;
  if (mux !== 'on' && mux !== 'off') throw new QmpError("Parameter 'mux' expects 'on' or 'off'");
  const data = { ...picked(given, ['logfile', 'logappend']), ...dataOf(type, given) };
  return { id, backend: { type, data }, mux: mux === 'on' };
}

function dataOf(type: string, given: JsonObject): JsonObject {
  switch (type) {
    case 'socket':
      return socketData(given);
    case 'udp':
      return udpData(given);
    case 'file': {
      const input = picked(given, ['input-path'])['input-path'];
      const out = required(given, 'path', 'file: no filename given');
      return { out, ...(input === undefined ? {} : { in: input }), ...picked(given, ['append']) };
    }
    case 'pipe':
      return { device: required(given, 'path', 'pipe: no device path given') };
    case 'serial':
      return { device: required(given, 'path', 'serial/tty: no device path given') };
    case 'parallel':
      return { device: required(given, 'path', 'parallel: no device path given') };
    case 'mux':
      return { chardev: required(given, 'chardev', 'mux: no chardev given') };
    case 'pty':
      return picked(given, ['path']);
    case 'stdio':
      return picked(given, ['signal']);
    case 'ringbuf':
    case 'memory':
      return picked(given, ['size']);
    default:
      return {};
  }
}

function required(given: JsonObject, name: string, why: string): Json {
  const value = given[name];
  if (value === undefined) throw new QmpError(`chardev: ${why}`);
  return value;
}

/** Those of `names` that are there. */
function picked(given: JsonObject, names: readonly string[]): JsonObject {
  return Object.fromEntries(names.filter((name) => given[name] !== undefined).map((name) => [name, given[name]!]));
}

function socketData(given: JsonObject): JsonObject {
  const { server = 'off', delay } = given;
  const data = {
    ...picked(given, ['nodelay', 'telnet', 'tn3270', 'websocket', 'reconnect', 'reconnect-ms']),
    ...picked(given, ['tls-creds', 'tls-authz', 'wait']),
    // One who serves waits unless it is told not to.
    ...(server !== 'off' && given.wait === undefined ? { wait: 'on' } : {}),
    ...(delay === undefined ? {} : { nodelay: delay === 'off' ? 'on' : 'off' }),
  };
  return { ...data, server, addr: socketAddress(given) };
}

function socketAddress(given: JsonObject): JsonObject {
  if (given.path !== undefined) return { type: 'unix', data: picked(given, ['path', 'abstract', 'tight']) };
  if (given.fd !== undefined) return { type: 'fd', data: { str: given.fd } };
  const port = required(given, 'port', given.host === undefined ? 'socket: no address given' : 'socket: no port given');
  return { type: 'inet', data: { host: given.host ?? '', port, ...picked(given, ['ipv4', 'ipv6', 'to']) } };
}

function udpData(given: JsonObject): JsonObject {
  const port = required(given, 'port', 'udp: remote port not specified');
  const { host = '', localaddr, localport } = given;
  const remote = {
    type: 'inet',
    data: { host: host === '' ? 'localhost' : host, port, ...picked(given, ['ipv4', 'ipv6']) },
  };
  if (localaddr === undefined && localport === undefined) return { remote };
  const own = { host: localaddr ?? '', port: localport ?? '0' };
  return { remote, local: { type: 'inet', data: own } };
}

export function chardevHelp(): string {
  const names = CHARDEVS_HERE.map((name) => `  ${name}\n`);
  return `Available chardev backend types: \n${names.join('')}`;
}
