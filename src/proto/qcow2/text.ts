/**
 * Names inside an image. They are UTF-8 as a rule, and whatever bytes they are, they must come back the same when the
 * image is written.
 */

const decoder = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true });
const encoder = new TextEncoder();
/** Stands for the byte 0x80 of a name that is not UTF-8; up to 0xff follow. Such a character is in no UTF-8 text. */
const RAW = 0xdc80;
const RAW_CHARACTER = /[\udc80-\udcff]/u;

/** The text of a name; in one that is not UTF-8 each byte above 0x7f becomes a lone surrogate. */
export function decodeName(bytes: Uint8Array): string {
  // A copy: the bytes may be in shared memory, of which a TextDecoder takes none.
  const own = new Uint8Array(bytes);
  try {
    return decoder.decode(own);
  } catch {
    let text = '';
    for (const byte of own) text += String.fromCharCode(byte < 0x80 ? byte : RAW + byte - 0x80);
    return text;
  }
}

/** The bytes of a name, as `decodeName` got them: of a raw character and of one of ASCII, the lower eight bits. */
export function encodeName(name: string): Uint8Array {
  if (!RAW_CHARACTER.test(name)) return encoder.encode(name);
  const bytes = new Uint8Array(name.length);
  for (let i = 0; i < name.length; i++) bytes[i] = name.charCodeAt(i);
  return bytes;
}
