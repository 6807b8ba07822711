/** Which bytes of a read have come, where they come in pieces: each byte once, in any order. */

/** Pieces apart from each other at a time. A server that sends more is not trusted with our memory. */
const PIECES_MAX = 1024;

export class Coverage {
  /** Beginnings and ends of what has come: sorted, disjoint, not adjacent. */
  readonly #edges: number[] = [];
  /** Bytes that have come. */
  bytes = 0;

  /** Takes `[from, to)`. False when some of it has come before, or when there are too many pieces. */
  add(from: number, to: number): boolean {
    const edges = this.#edges;
    let at = edges.length;
    while (at > 0 && edges[at - 2]! >= to) at -= 2;
    const before = at > 0 ? edges[at - 1]! : -1;
    if (before > from) return false;
    this.bytes += to - from;
    const touchesNext = at < edges.length && edges[at] === to;
    if (before === from && touchesNext) edges.splice(at - 1, 2);
    else if (before === from) edges[at - 1] = to;
    else if (touchesNext) edges[at] = from;
    else edges.splice(at, 0, from, to);
    return edges.length <= 2 * PIECES_MAX;
  }
}
