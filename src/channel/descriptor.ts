/** Descriptors: how they are made, and how a thread claims the one it was given. */
import { MessageChannel, MessagePort, threadId } from 'node:worker_threads';
import { BlockError, Errno } from '../base/errors.ts';
import {
  type BlkDescriptor,
  type BlkIdentity,
  type ChannelOffer,
  isChannelWords,
  newChannelWords,
  type SharedWords,
  Word,
} from './layout.ts';

/** A new channel: `offer` is for its home, `port` and `offer.words` are for the client's descriptor. */
export function newOffer(): { readonly offer: ChannelOffer; readonly port: MessagePort } {
  const { port1, port2 } = new MessageChannel();
  return { offer: { words: newChannelWords(), port: port2 }, port: port1 };
}

export function descriptorOf(identity: BlkIdentity, words: SharedWords, port: MessagePort): BlkDescriptor {
  const { name, id, homeThread, home, takeUp, disk, counters, mutex } = identity;
  return { kind: 'blockplane-handle', name, id, homeThread, home, takeUp, disk, counters, mutex, words, port };
}

/**
 * Takes a descriptor for the calling thread, for good; answers its port. EINVAL for what is none, EPERM when this
 * thread was not given it (its port went elsewhere, or did not come along), EBUSY when it was used already.
 */
export function claim(descriptor: BlkDescriptor): MessagePort {
  const refuse = (errno: number, why: string): BlockError =>
    new BlockError(errno, `Could not attach to the descriptor: ${why}`);
  const { kind, words, port } = descriptor ?? {};
  if (kind !== 'blockplane-handle' || !isChannelWords(words)) throw refuse(Errno.EINVAL, 'it is none');
  if (Atomics.load(words, Word.CLIENT) !== 0) throw refuse(Errno.EBUSY, 'it was used already');
  if (!(port instanceof MessagePort)) throw refuse(Errno.EPERM, 'its port was not given to this thread');
  let own: MessagePort;
  try {
    // Node tells a port that was given away from others here only.
    own = structuredClone(port, { transfer: [port] });
  } catch (error) {
    throw new BlockError(Errno.EPERM, refuse(Errno.EPERM, 'it was given to another thread').message, { cause: error });
  }
  if (Atomics.compareExchange(words, Word.CLIENT, 0, threadId + 1) !== 0) {
    own.close();
    throw refuse(Errno.EBUSY, 'it was used already');
  }
  return own;
}
