/** `authz-simple`, `authz-list` and `authz-list-file`. */
import { Authorizer, type Authz, type AuthzList } from '../../tls/authz.ts';
import { ObjectKind, type ObjectOption, type ObjectType } from './object-type.ts';

export interface AuthzSimpleOptions {
  readonly 'qom-type': 'authz-simple';
  readonly id: string;
  /** The distinguished name that may come in. */
  readonly identity: string;
}

export interface AuthzListOptions extends AuthzList {
  readonly 'qom-type': 'authz-list';
  readonly id: string;
}

export interface AuthzListFileOptions {
  readonly 'qom-type': 'authz-list-file';
  readonly id: string;
  /** JSON, like the options of authz-list. */
  readonly filename: string;
  /** It is read anew for each client; default true. */
  readonly refresh?: boolean | undefined;
}

export const AUTHZ = new ObjectKind<Authz>('authorization', 'an authorization');

/** EINVAL where it cannot be, and what reading the file ends with. */
function checked(authz: Authz): Authz {
  new Authorizer(authz);
  return authz;
}

export const authzSimpleType: ObjectType<Authz> = {
  name: 'authz-simple',
  kind: AUTHZ,
  options: { identity: { type: 'string', required: true, help: 'the distinguished name that may come in' } },
  create: ({ identity }) => [identity as string],
};

const RULE: Readonly<Record<string, ObjectOption>> = {
  match: { type: 'string', required: true, help: 'whom it is about' },
  policy: { type: 'enum', values: ['deny', 'allow'], required: true, help: 'what they may' },
  format: { type: 'enum', values: ['exact', 'glob'], help: 'how match is meant (exact)' },
};

export const authzListType: ObjectType<Authz> = {
  name: 'authz-list',
  kind: AUTHZ,
  options: {
    policy: { type: 'enum', values: ['allow', 'deny'], help: 'where no rule decides (deny)' },
    rules: { type: 'any', many: true, members: RULE, help: 'match, policy=allow|deny and format=exact|glob of each' },
  },
  create: (options) => checked(options as AuthzList),
};

export const authzListFileType: ObjectType<Authz> = {
  name: 'authz-list-file',
  kind: AUTHZ,
  options: {
    filename: { type: 'string', required: true, help: 'a file with policy and rules as JSON' },
    refresh: { type: 'boolean', help: 'whether it is read anew for each client (on)' },
  },
  create: ({ filename, refresh }) =>
    checked({ file: filename as string, ...(refresh === undefined ? {} : { refresh: refresh as boolean }) }),
};
