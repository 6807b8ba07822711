/** Encrypts and decrypts whole sectors in place. Synchronous, in the caller's thread. */
export interface SectorCipher {
  /** `bytes` are whole sectors of 512 bytes, the first of them number `sector`. */
  encrypt(bytes: Uint8Array, sector: number): void;
  decrypt(bytes: Uint8Array, sector: number): void;
}
