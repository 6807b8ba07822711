/** Options of web servers as text, for command lines: where others can see what is in it. */
import { BlockError, Errno } from '../base/errors.ts';
import { splitOptions, typedValue } from '../block/text-options.ts';
import { OPTIONS } from '../drivers/http/settings.ts';
import { secretOption } from './objects/resolve.ts';
import type { HttpSettings } from './options.ts';

/** A secret, named by the option of its file. */
const FILE = /-file$/;

/**
 * `name=value,name=value` by the names of the driver's options, more than once or not. A secret is not taken, but the
 * file that it is in, or the id of a secret object: `password-file=PATH` or `password-secret=ID` for `password`.
 * `read`: the content of a file. EINVAL.
 */
export function textHttpSettings(texts: readonly string[], read: (path: string) => string): HttpSettings {
  const settings: Record<string, unknown> = {};
  for (const part of texts.flatMap(splitOptions)) {
    const [, name = '', value = ''] = /^([^=]+)=(.*)$/s.exec(part) ?? [];
    const own = name.replace(FILE, '');
    if (own !== name && Object.hasOwn(OPTIONS, own) && OPTIONS[own]!.type === 'secret' && own !== 'url') {
      settings[own] = read(value).replace(/\r?\n$/, '');
      continue;
    }
    if (Object.hasOwn(OPTIONS, secretOption(name) ?? '')) {
      settings[name] = value;
      continue;
    }
    const spec = Object.hasOwn(OPTIONS, name) ? OPTIONS[name] : undefined;
    if (spec === undefined || spec.type === 'secret') throw unknown(name);
    settings[name] = typedValue(name, value, spec);
  }
  return settings as HttpSettings;
}

function unknown(name: string): BlockError {
  const known = Object.entries(OPTIONS).filter(([one]) => one !== 'url');
  const names = known.map(([one, { type }]) => (type === 'secret' ? `${one}-file` : one));
  // What is before the first '=' at most: the rest could be a secret.
  return new BlockError(Errno.EINVAL, `Unknown option '${name}' of http: there are ${names.join(', ')}`);
}
