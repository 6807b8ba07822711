/** Nodes from a root down to its furthest leaf: a chain of 256 images, and a few filters above and files below. */
export const MAX_DEPTH = 264;
