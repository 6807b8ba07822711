/** What stands around the bytes of a conversation on its connection. */
export interface Framing {
  /** Goes out before everything else. */
  readonly opening?: Uint8Array;
  /** Bytes from the other side: what they carry. `answer` sends what the framing itself has to say; `end` ends the
   *  connection behind it. */
  decode(bytes: Uint8Array, answer: (bytes: Uint8Array) => void, end: () => void): Uint8Array;
  encode(text: string): Uint8Array;
}
