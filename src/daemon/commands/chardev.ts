import { QmpError } from '../../qmp/errors.ts';
import { CHARDEVS_HERE } from '../../qmp/schema/control.ts';
import { ChardevFailure } from '../chardev/chardevs.ts';
import type { Daemon } from '../daemon.ts';
import type { Handlers } from './table.ts';

export function chardevCommands({ chardevs }: Daemon): Handlers {
  return {
    'query-chardev': () => chardevs.list(),
    'query-chardev-backends': () => CHARDEVS_HERE.map((name) => ({ name })),
    'chardev-add': ({ id, backend }) => named(id, chardevs.add(id, backend)),
    'chardev-change': ({ id, backend }) => named(id, chardevs.change(id, backend)),
    'chardev-remove': ({ id }) => chardevs.remove(id),
    'chardev-send-break': ({ id }) => chardevs.sendBreak(id),
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

/** What cannot be opened is told of with its name. */
async function named<T>(id: string, opening: Promise<T>): Promise<T> {
  try {
    return await opening;
  } catch (error) {
    if (!(error instanceof ChardevFailure)) throw error;
    throw new QmpError(`Failed to add chardev '${id}': ${error.message}`, error.errorClass, error);
  }
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
