/** JSON as qemu-img prints it: four spaces a level, and no list on one line. */
export function jsonText(value: unknown): string {
  return `${render(value, '')}\n`;
}

function render(value: unknown, indent: string): string {
  if (typeof value !== 'object' || value === null) return scalar(value);
  const inner = `${indent}    `;
  const list = Array.isArray(value);
  const lines = list
    ? value.map((item) => `${inner}${render(item, inner)}`)
    : Object.entries(value).flatMap(([name, member]) =>
        member === undefined ? [] : [`${inner}${scalar(name)}: ${render(member, inner)}`],
      );
  const [open, close] = list ? ['[', ']'] : ['{', '}'];
  return `${open}\n${lines.length === 0 ? '' : `${lines.join(',\n')}\n`}${indent}${close}`;
}

/** All but ASCII is escaped. */
function scalar(value: unknown): string {
  return JSON.stringify(value).replace(
    /[\u007f-\uffff]/g,
    (char) => `\\u${char.charCodeAt(0).toString(16).toUpperCase().padStart(4, '0')}`,
  );
}
