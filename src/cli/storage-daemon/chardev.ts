/** `--chardev socket,id=c,path=...`: flat names, made into what `chardev-add` takes. */
import { QmpError } from '../../qmp/errors.ts';
import { isObject, type Json, type JsonObject } from '../../qmp/json.ts';
import type { Schema } from '../../qmp/schema/types.ts';

const ADDRESS = ['path', 'host', 'port', 'fd', 'abstract', 'tight', 'ipv4', 'ipv6', 'to'] as const;

export function chardevBackend(
  given: JsonObject,
  schema: Schema,
): { readonly id: Json | undefined; readonly backend: JsonObject } {
  const { backend: type, id, ...rest } = given;
  if (id === undefined) throw new QmpError('chardev: no id specified');
  if (typeof type !== 'string') throw new QmpError(`chardev: "${String(id)}" missing backend`);
  if (!schema.enums.ChardevBackendKind!.includes(type)) {
    throw new QmpError(`'${type}' is not a valid char driver name`);
  }
  switch (type) {
    case 'socket':
      return { id, backend: { type, data: socketData(rest) } };
    case 'file': {
      const { path, 'input-path': input, ...more } = rest;
      return { id, backend: { type, data: { ...more, ...named('out', path), ...named('in', input) } } };
    }
    case 'pipe': {
      const { path, ...more } = rest;
      return { id, backend: { type, data: { ...more, ...named('device', path) } } };
    }
    default:
      return { id, backend: { type, data: rest } };
  }
}

function named(name: string, value: Json | undefined): JsonObject {
  return value === undefined ? {} : { [name]: value };
}

function socketData(given: JsonObject): JsonObject {
  const addr: Record<string, Json> = {};
  const rest: Record<string, Json> = {};
  for (const [name, value] of Object.entries(given)) {
    if (isObject(value)) throw new QmpError(`Invalid parameter '${name}'`);
    if (name === 'delay') rest.nodelay = value === 'off' ? 'on' : 'off';
    else if ((ADDRESS as readonly string[]).includes(name)) addr[name] = value!;
    else rest[name] = value!;
  }
  const { path, fd, ...inet } = addr;
  const server = rest.server ?? 'off';
  const wait = rest.wait ?? (server === 'off' ? 'off' : 'on');
  const common = { ...rest, server, wait };
  if (path !== undefined) {
    return { ...common, addr: { type: 'unix', data: { path, ...inet } } };
  }
  if (fd !== undefined) return { ...common, addr: { type: 'fd', data: { str: fd } } };
  if (inet.port === undefined) throw new QmpError("Parameter 'path', 'port' or 'fd' is missing");
  return { ...common, addr: { type: 'inet', data: { host: '', ...inet } } };
}

export function chardevHelp(schema: Schema): string {
  const names = schema.enums.ChardevBackendKind!.map((name) => `  ${name}\n`);
  return `Available chardev backend types: \n${names.join('')}`;
}
