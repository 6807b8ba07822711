import { sendDatagram } from '../native/socket.ts';

/**
 * Tells the service manager (sd_notify(3)) of a state, such as 'READY=1', where it has asked to be told. Best effort:
 * whoever does not listen any more is not missed.
 */
export function notifyServiceManager(environment: NodeJS.ProcessEnv, state: string): void {
  const { NOTIFY_SOCKET: path } = environment;
  if (path?.startsWith('/') || path?.startsWith('@')) sendDatagram(path, new TextEncoder().encode(state));
}
