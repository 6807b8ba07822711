import { QmpError } from '../../qmp/errors.ts';
import type { Daemon } from '../daemon.ts';
import type { Handlers } from './table.ts';

export function chardevCommands({ chardevs, schema }: Daemon): Handlers {
  return {
    'query-chardev': () => chardevs.list(),
    'query-chardev-backends': () => schema.enums.ChardevBackendKind!.map((name) => ({ name })),
    'chardev-add': async ({ id, backend }) => {
      await chardevs.add(id, backend);
      return {};
    },
    'chardev-change': async ({ id, backend }) => {
      await chardevs.change(id, backend);
      return {};
    },
    'chardev-remove': ({ id }) => chardevs.remove(id),
    // None of the devices that there are has a line to break.
    'chardev-send-break': ({ id }) => chardevs.assertThere(id),
    'ringbuf-write': ({ device, data, format = 'utf8' }) => {
      chardevs.ringbuf(device).write(format === 'base64' ? fromBase64(data) : new TextEncoder().encode(data));
    },
    'ringbuf-read': ({ device, size, format = 'utf8' }) => {
      const ringbuf = chardevs.ringbuf(device);
      if (size <= 0) throw new QmpError('size must be greater than zero');
      const bytes = ringbuf.read(size);
      return format === 'base64' ? toBase64(bytes) : new TextDecoder().decode(bytes);
    },
  };
}

function fromBase64(text: string): Uint8Array {
  try {
    return Uint8Array.from(atob(text), (char) => char.charCodeAt(0));
  } catch {
    throw new QmpError('Base64 data is not valid');
  }
}

function toBase64(bytes: Uint8Array): string {
  return btoa(Array.from(bytes, (byte) => String.fromCharCode(byte)).join(''));
}
