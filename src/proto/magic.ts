/** Formats that are known by the first bytes of an image. */
const MAGICS: readonly { readonly format: string; readonly at: number; readonly bytes: readonly number[] }[] = [
  { format: 'qcow2', at: 0, bytes: [0x51, 0x46, 0x49, 0xfb, 0, 0, 0] },
  { format: 'qcow', at: 0, bytes: [0x51, 0x46, 0x49, 0xfb] },
  { format: 'qed', at: 0, bytes: [0x51, 0x45, 0x44, 0x00] },
  { format: 'vmdk', at: 0, bytes: [0x4b, 0x44, 0x4d, 0x56] },
  { format: 'vmdk', at: 0, bytes: [0x43, 0x4f, 0x57, 0x44] },
  { format: 'vhdx', at: 0, bytes: [0x76, 0x68, 0x64, 0x78, 0x66, 0x69, 0x6c, 0x65] },
  { format: 'vpc', at: 0, bytes: [0x63, 0x6f, 0x6e, 0x65, 0x63, 0x74, 0x69, 0x78] },
  { format: 'luks', at: 0, bytes: [0x4c, 0x55, 0x4b, 0x53, 0xba, 0xbe] },
  { format: 'vdi', at: 0x40, bytes: [0x7f, 0x10, 0xda, 0xbe] },
];

/** How much of an image's head {@link magicOf} looks at. */
export const MAGIC_BYTES = 512;

/** The format whose magic `head` begins with; undefined for none. */
export function magicOf(head: Uint8Array): string | undefined {
  return MAGICS.find(({ at, bytes }) => bytes.every((byte, i) => head[at + i] === byte))?.format;
}
