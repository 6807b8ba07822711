/** NBD clients that only shake hands and stay: to see what a connection costs a server. */
import { connect, type Socket } from 'node:net';

const TIMEOUT_MS = 5000;
const GREETING_BYTES = 18;
const OPTION_HEADER_BYTES = 20;
const OPT_GO = 7;
const REP_ACK = 1;
const REP_IS_ERROR = 0x8000_0000;

/**
 * The client's flags (fixed newstyle, no zeroes) and NBD_OPT_GO for the export of this name, no information asked for.
 */
function hello(exportName: string): Uint8Array {
  const name = new TextEncoder().encode(exportName);
  const bytes = new Uint8Array(4 + 16 + 4 + name.length + 2);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, 3);
  bytes.set(new TextEncoder().encode('IHAVEOPT'), 4);
  view.setUint32(12, OPT_GO);
  view.setUint32(16, 4 + name.length + 2);
  view.setUint32(20, name.length);
  bytes.set(name, 24);
  return bytes;
}

/** Reads option replies from behind the greeting: true at the acknowledgement, false while more is to come. */
function acknowledged(bytes: Uint8Array): boolean {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  let at = GREETING_BYTES;
  while (at + OPTION_HEADER_BYTES <= bytes.length) {
    const type = view.getUint32(at + 12);
    if (type === REP_ACK) return true;
    if (type >= REP_IS_ERROR) throw new Error(`Could not open the export: option reply 0x${type.toString(16)}`);
    at += OPTION_HEADER_BYTES + view.getUint32(at + 16);
  }
  return false;
}

/** A client in the transmission phase. Rejects when the server refuses. */
export function attach(socketPath: string, exportName: string): Promise<Socket> {
  return new Promise((resolve, reject) => {
    const socket = connect(socketPath);
    const late = () => socket.destroy(new Error(`Could not open the export: no answer in ${TIMEOUT_MS} ms`));
    const timer = setTimeout(late, TIMEOUT_MS);
    let bytes: Uint8Array = new Uint8Array();
    let greeted = false;
    socket.on('error', reject);
    socket.on('close', () => {
      clearTimeout(timer);
      reject(new Error('Could not open the export: the server closed the connection'));
    });
    socket.on('data', (data: Uint8Array) => {
      const joined = new Uint8Array(bytes.length + data.length);
      joined.set(bytes);
      joined.set(data, bytes.length);
      bytes = joined;
      if (!greeted && bytes.length >= GREETING_BYTES) {
        greeted = true;
        socket.write(hello(exportName));
      }
      try {
        if (!greeted || !acknowledged(bytes)) return;
        clearTimeout(timer);
        resolve(socket);
      } catch (error) {
        reject(error);
      }
    });
  });
}
