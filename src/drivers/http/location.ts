/** URLs: what is taken, what of it may be shown, and where a redirect may lead. */
import { BlockError, Errno } from '../../base/errors.ts';

const WEB = /^https?:$/;

/** The constructor's errors hold the text. */
function parsed(text: string, base?: string): URL | null {
  return URL.canParse(text, base) ? new URL(text, base) : null;
}

/**
 * A URL as messages have it: without userinfo, query and fragment, any of which may be a credential (a signed URL's is
 * its query).
 */
export function shownUrl(text: string): string {
  const url = parsed(text);
  if (url === null) return `${/^[A-Za-z][A-Za-z0-9+.-]*(?=:)/.exec(text)?.[0] ?? 'http'}://…`;
  return `${url.protocol}//${url.host}${url.pathname}${url.search === '' ? '' : '?…'}`;
}

/** True for what names something on a server, by the protocols that this driver, or another one some day, is for. */
export function isRemoteUrl(text: string): boolean {
  return /^(https?|ftps?):\/\//i.test(text);
}

/** The path of a URL: the name of the file, for its ending. */
export function urlPath(text: string): string {
  return parsed(text)?.pathname ?? '';
}

export interface Userinfo {
  readonly username: string;
  readonly password: string;
}

/** A URL without userinfo and fragment, and its userinfo. EINVAL; no message has more of it than may be shown. */
export function parseUrl(text: string, protocols: RegExp = WEB): { readonly url: URL; readonly userinfo?: Userinfo } {
  const refuse = (why: string): BlockError =>
    new BlockError(Errno.EINVAL, `Could not open '${shownUrl(text)}': ${why}`, { where: { op: 'open' } });
  const url = parsed(text);
  if (url === null) throw refuse('it is not a URL');
  if (!protocols.test(url.protocol)) throw refuse(`'${url.protocol}' is not what this driver is for`);
  const { username, password } = url;
  url.username = '';
  url.password = '';
  url.hash = '';
  if (username === '' && password === '') return { url };
  try {
    return { url, userinfo: { username: decodeURIComponent(username), password: decodeURIComponent(password) } };
  } catch {
    throw refuse('the user or password in it is not percent-encoded text');
  }
}

/** Where a redirect leads, or why it is not followed. */
export function redirected(from: URL, location: string | undefined, insecure: boolean): URL | string {
  const to = location === undefined ? null : parsed(location, from.href);
  if (to === null) return 'the server redirects to nowhere';
  if (!WEB.test(to.protocol)) return `the server redirects to '${to.protocol}', which is not followed`;
  if (from.protocol === 'https:' && to.protocol === 'http:' && !insecure) {
    return 'the server redirects from https to http (allowed with insecure-redirects)';
  }
  to.username = '';
  to.password = '';
  to.hash = '';
  return to;
}
