/** The types of objects that every program has. A program with more of them gives its store a longer table. */
import type { ObjectType } from './object-type.ts';
import { type SecretOptions, secretType } from './secret.ts';

export const OBJECT_TYPES: readonly ObjectType[] = [secretType];

export type ObjectOptions = SecretOptions;
