/** The types of objects that every program has. A program with more of them gives its store a longer table. */
import {
  type AuthzListFileOptions,
  type AuthzListOptions,
  type AuthzSimpleOptions,
  authzListFileType,
  authzListType,
  authzSimpleType,
} from './authz.ts';
import type { ObjectType } from './object-type.ts';
import { type SecretOptions, secretType } from './secret.ts';
import { type ThrottleGroupOptions, throttleGroupType } from './throttle.ts';
import {
  type TlsAnonOptions,
  type TlsPskOptions,
  type TlsX509Options,
  tlsAnonType,
  tlsPskType,
  tlsX509Type,
} from './tls.ts';

export const OBJECT_TYPES: readonly ObjectType[] = [
  ...[authzListType, authzListFileType, authzSimpleType],
  ...[secretType, throttleGroupType, tlsAnonType, tlsPskType, tlsX509Type],
];

export type ObjectOptions =
  | SecretOptions
  | ThrottleGroupOptions
  | TlsX509Options
  | TlsPskOptions
  | TlsAnonOptions
  | AuthzSimpleOptions
  | AuthzListOptions
  | AuthzListFileOptions;
