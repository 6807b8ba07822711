/**
 * A broken promise inside Blockplane itself. Never caught except at the top of a thread, which then ends the process.
 */
export class Bug extends Error {
  override readonly name = 'Bug';
}

/** Throws {@link Bug} unless `condition` holds. For what only our own mistake can break, never for input. */
export function assert(condition: unknown, message: string): asserts condition {
  if (!condition) throw new Bug(message);
}

/** Marks a branch that the types rule out. */
export function unreachable(value: never): never {
  throw new Bug(`unreachable: ${String(value)}`);
}
