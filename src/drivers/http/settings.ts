/** The options of an http or https node, and what they come to. */
import { readFileSync } from 'node:fs';
import { BlockError, Errno, errnoOf, errnoText } from '../../base/errors.ts';
import { type Bytes, GiB, MiB, type Nanoseconds } from '../../base/units.ts';
import type { OptionSpec } from '../../block/driver.ts';
import { parseUrl, shownUrl, type Userinfo } from './location.ts';

export interface HttpOptions {
  readonly url: string;
  /** Bytes; 0 for none. */
  readonly readahead?: Bytes;
  /** Seconds. */
  readonly timeout?: number;
  readonly connections?: number;
  readonly retries?: number;
  readonly username?: string;
  readonly password?: string;
  readonly 'bearer-token'?: string;
  readonly cookie?: string;
  readonly sslverify?: boolean;
  readonly cafile?: string;
  readonly 'insecure-redirects'?: boolean;
  readonly download?: boolean;
  readonly proxy?: string;
  readonly 'proxy-username'?: string;
  readonly 'proxy-password'?: string;
}

/** URLs are secrets too: both may hold a password. */
export const OPTIONS: Readonly<Record<string, OptionSpec>> = {
  url: { type: 'secret', required: true, help: 'URL of the image' },
  readahead: { type: 'size', help: 'most bytes fetched ahead of sequential reads (default 32 MiB); 0 for none' },
  timeout: { type: 'number', help: 'seconds that a server may be silent (default 10)' },
  connections: { type: 'number', help: 'requests at a time, each on a connection (default 8)' },
  retries: { type: 'number', help: 'how often a request is tried again that has come to nothing (default 4)' },
  username: { type: 'string', help: 'user for basic authentication' },
  password: { type: 'secret', help: 'password for basic authentication' },
  'bearer-token': { type: 'secret', help: 'token for bearer authentication' },
  cookie: { type: 'secret', help: 'cookies to send, as NAME=VALUE; NAME=VALUE' },
  sslverify: { type: 'boolean', help: "check the server's certificate (default on)" },
  cafile: { type: 'string', help: 'file with the certificates (PEM) to trust instead of the usual ones' },
  'insecure-redirects': { type: 'boolean', help: 'follow redirects from https to http (default off)' },
  download: { type: 'boolean', help: 'where the server does not serve ranges, fetch all of it first (default off)' },
  proxy: { type: 'secret', help: 'URL of an HTTP proxy' },
  'proxy-username': { type: 'string', help: 'user for the proxy' },
  'proxy-password': { type: 'secret', help: 'password for the proxy' },
};

/** What of it there is for ftp and ftps. */
export const FTP_OPTIONS: Readonly<Record<string, OptionSpec>> = Object.fromEntries(
  Object.entries(OPTIONS).filter(([name]) => !/^proxy|cookie|bearer|redirects|download/.test(name)),
);

export interface TlsSettings {
  readonly rejectUnauthorized: boolean;
  /** PEM. */
  readonly ca?: string;
}

export type Protocol = 'http' | 'https' | 'ftp' | 'ftps';

export interface HttpSettings {
  readonly url: URL;
  /** The URL in messages. */
  readonly shown: string;
  readonly readahead: Bytes;
  readonly timeoutNs: Nanoseconds;
  readonly connections: number;
  readonly retries: number;
  readonly insecureRedirects: boolean;
  /** A server without ranges has all of the file fetched first. */
  readonly download: boolean;
  readonly tls: TlsSettings;
  /** Headers with credentials: for the URL's own origin. */
  readonly secrets: Readonly<Record<string, string>>;
  /** For ftp and ftps. */
  readonly login?: Userinfo | undefined;
  readonly proxy?: { readonly url: URL; readonly authorization?: string };
}

/** Pooled connections of a node: a browser has 6 to a server, a CDN allows some dozens. */
const CONNECTIONS_MAX = 64;
const NS = 1e9;
/** A day. */
const TIMEOUT_MAX = 86_400;

/** Checks the options. EINVAL names the one that is wrong, and shows no secret. */
export function settingsOf(options: HttpOptions, protocol: Protocol): HttpSettings {
  const { readahead = 32 * MiB, timeout = 10, connections = 8, retries = 4, cafile } = options;
  const shown = shownUrl(options.url);
  const refuse = (why: string, errno: number = Errno.EINVAL): BlockError =>
    new BlockError(errno, `Could not open '${shown}': ${why}`, { where: { op: 'open' } });
  const within = (name: string, value: number, least: number, most: number): void => {
    if (value < least || value > most) throw refuse(`option '${name}' is ${value}, not from ${least} to ${most}`);
  };
  const whole = (name: string, value: number, least: number, most: number): void => {
    if (!Number.isInteger(value)) throw refuse(`option '${name}' is ${value}, not a whole number`);
    within(name, value, least, most);
  };
  within('readahead', readahead, 0, GiB);
  within('timeout', timeout, 0.001, TIMEOUT_MAX);
  whole('connections', connections, 1, CONNECTIONS_MAX);
  whole('retries', retries, 0, 100);
  const { url, userinfo } = parseUrl(options.url, new RegExp(`^${protocol}:$`));
  return {
    ...{ url, shown, readahead, timeoutNs: timeout * NS, connections, retries },
    insecureRedirects: options['insecure-redirects'] ?? false,
    download: options.download ?? false,
    tls: {
      rejectUnauthorized: options.sslverify ?? true,
      ...(cafile === undefined ? {} : { ca: certificates(cafile, refuse) }),
    },
    ...(protocol.startsWith('ftp')
      ? { secrets: {}, login: loginOf(options, userinfo, refuse) }
      : { secrets: secretHeaders(options, userinfo, refuse), ...proxyOf(options, refuse) }),
  };
}

type Refuse = (why: string, errno?: number) => BlockError;

function certificates(path: string, refuse: Refuse): string {
  try {
    return readFileSync(path, 'utf8');
  } catch (error) {
    throw refuse(`option 'cafile': could not read '${path}': ${errnoText(errnoOf(error))}`, errnoOf(error));
  }
}

function userOf(options: HttpOptions, userinfo: Userinfo | undefined, refuse: Refuse): Userinfo | undefined {
  const { username, password } = options;
  const given = username !== undefined || password !== undefined;
  if (given && userinfo) throw refuse("a user is in the URL, and in 'username' or 'password': give one of them");
  if (password !== undefined && username === undefined) throw refuse("option 'password' needs 'username'");
  return username === undefined ? userinfo : { username, password: password ?? '' };
}

function secretHeaders(options: HttpOptions, userinfo: Userinfo | undefined, refuse: Refuse): Record<string, string> {
  const { cookie } = options;
  const token = options['bearer-token'];
  const user = userOf(options, userinfo, refuse);
  if (token !== undefined && user) throw refuse("'bearer-token' and a user: give one of them");
  const headers: Record<string, string> = {};
  if (user) headers.authorization = basic(user, refuse);
  if (token !== undefined) headers.authorization = `Bearer ${headerText('bearer-token', token, refuse)}`;
  if (cookie !== undefined) headers.cookie = headerText('cookie', cookie, refuse);
  return headers;
}

/** A command is a line. */
function loginOf(options: HttpOptions, userinfo: Userinfo | undefined, refuse: Refuse): Userinfo | undefined {
  const user = userOf(options, userinfo, refuse);
  for (const [name, text] of Object.entries(user ?? {})) {
    if (/\p{Cc}/u.test(text)) throw refuse(`the ${name} has characters that FTP cannot hold`);
  }
  return user;
}

function proxyOf(options: HttpOptions, refuse: Refuse): Pick<HttpSettings, 'proxy'> {
  const { proxy } = options;
  const username = options['proxy-username'];
  const password = options['proxy-password'];
  if (proxy === undefined) {
    if (username === undefined && password === undefined) return {};
    throw refuse("option 'proxy-username' or 'proxy-password' without 'proxy'");
  }
  const { url, userinfo } = parseUrl(proxy);
  if (password !== undefined && username === undefined) throw refuse("option 'proxy-password' needs 'proxy-username'");
  if (username !== undefined && userinfo)
    throw refuse("a user is in 'proxy', and in 'proxy-username': give one of them");
  const user = username === undefined ? userinfo : { username, password: password ?? '' };
  return { proxy: { url, ...(user ? { authorization: basic(user, refuse) } : {}) } };
}

/** [RFC 7617]: as UTF-8. */
function basic({ username, password }: Userinfo, refuse: Refuse): string {
  if (username.includes(':')) throw refuse("a user for basic authentication cannot have ':' in its name");
  const bytes = new TextEncoder().encode(`${username}:${password}`);
  return `Basic ${btoa(String.fromCharCode(...bytes))}`;
}

/** A value may hold no line of its own. The end of the line that a file ends with is not part of it. */
function headerText(name: string, value: string, refuse: Refuse): string {
  const text = value.replace(/\r?\n$/, '');
  if (!/^[\x20-\x7e]*$/.test(text)) throw refuse(`option '${name}' has characters that a header cannot hold`);
  return text;
}
