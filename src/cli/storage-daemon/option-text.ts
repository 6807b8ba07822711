/** The value of an option: `driver=raw,file.filename=x`, or JSON where it begins with '{'. */
import { splitOptions } from '../../block/text-options.ts';
import { keyval } from '../../lib/keyval.ts';
import type { Style } from '../../qmp/check.ts';
import { QmpError } from '../../qmp/errors.ts';
import { isObject, type Json, type JsonObject } from '../../qmp/json.ts';
import { type JsonError, JsonReader } from '../../qmp/json-reader.ts';

export interface OptionText {
  /** How the values are to be read. */
  readonly style: Style;
  readonly value: JsonObject;
  /** `help` or `?` stands among them. */
  readonly help: boolean;
}

/** `implied`: the name of a first value that comes without one. */
export function parseOptionText(text: string, implied?: string): OptionText {
  if (text.startsWith('{')) return { style: 'json', value: jsonOf(text), help: false };
  const parts = splitOptions(text);
  if (parts.some((part) => part === 'help' || part === '?')) return { style: 'text', value: {}, help: true };
  return { style: 'text', value: keyval(text, implied) as JsonObject, help: false };
}

/** A name alone is `name=on`, and with 'no' before it `name=off`. */
export function spellOutFlags(text: string): string {
  const [first, ...rest] = splitOptions(text);
  const whole = rest.map((part) => {
    if (part.includes('=') || part === 'help' || part === '?') return part;
    return part.startsWith('no') ? `${part.slice(2)}=off` : `${part}=on`;
  });
  return [first ?? '', ...whole].map((part) => part.replaceAll(',', ',,')).join(',');
}

function jsonOf(text: string): JsonObject {
  const values: Json[] = [];
  let failure: JsonError | undefined;
  const reader = new JsonReader(
    (value) => values.push(value),
    (error) => {
      failure ??= error;
    },
  );
  reader.push(new TextEncoder().encode(`${text}\n`));
  if (failure) throw new QmpError(failure.message);
  const [value, more] = values;
  if (value === undefined) throw new QmpError('JSON parse error, premature EOI');
  if (more !== undefined || !isObject(value)) throw new QmpError('JSON parse error, expecting one object');
  return value;
}
