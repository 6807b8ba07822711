/**
 * The web server of bench/http.ts, as a process of its own: ranges of made-up bytes, over a line with latency and a
 * rate that all connections share. A response begins LATENCY ms after its request; a connection costs that as well.
 *
 *     node http-server.js BYTES LATENCY-MS MIB-PER-SECOND (0: as fast as it can)
 *
 * Prints its port. Says `{requests, mostOpen}` to its parent when it is told anything.
 */
import { createServer, type ServerResponse } from 'node:http';
import type { AddressInfo, Socket } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';

const [bytes, latencyMs, mibPerSecond] = process.argv.slice(2).map(Number) as [number, number, number];
const CHUNK = 64 * 1024;
const bytesPerMs = (mibPerSecond * 2 ** 20) / 1000;
const data = new Uint8Array(CHUNK).map((_, i) => (i * 167) & 0xff);
/** When the line has sent all that was given to it, in ms. */
let lineFreeAt = 0;
let requests = 0;
let open = 0;
let mostOpen = 0;

async function body(response: ServerResponse, length: number): Promise<void> {
  for (let left = length; left > 0 && !response.destroyed; left -= CHUNK) {
    const piece = Math.min(CHUNK, left);
    if (bytesPerMs > 0) {
      const now = performance.now();
      lineFreeAt = Math.max(lineFreeAt, now) + piece / bytesPerMs;
      // Timers are of milliseconds: what is due within one goes now.
      if (lineFreeAt > now + 1) await sleep(lineFreeAt - now);
    }
    if (response.write(piece === CHUNK ? data : data.subarray(0, piece))) continue;
    await drained(response);
  }
  response.end();
}

function drained(response: ServerResponse): Promise<void> {
  return new Promise((resolve) => {
    const end = (): void => {
      response.off('drain', end).off('close', end);
      resolve();
    };
    response.on('drain', end).on('close', end);
  });
}

const fresh = new WeakSet<Socket>();
const server = createServer((request, response) => {
  requests++;
  mostOpen = Math.max(mostOpen, ++open);
  response.on('close', () => open--);
  const [, first, last] = /^bytes=(\d+)-(\d+)$/.exec(request.headers.range ?? '') ?? [];
  const from = Number(first ?? 0);
  const to = Math.min(Number(last ?? bytes - 1), bytes - 1);
  const trips = fresh.delete(request.socket) ? 2 : 1;
  setTimeout(() => {
    const headers = { 'content-length': String(to - from + 1), etag: '"1"' };
    if (first === undefined) response.writeHead(200, headers);
    else response.writeHead(206, { ...headers, 'content-range': `bytes ${from}-${to}/${bytes}` });
    void body(response, to - from + 1);
  }, latencyMs * trips);
});
server.on('connection', (socket) => fresh.add(socket.setNoDelay()));
server.listen(0, '127.0.0.1', () => console.log((server.address() as AddressInfo).port));
process.on('message', () => process.send?.({ requests, mostOpen }));
process.on('disconnect', () => process.exit());
