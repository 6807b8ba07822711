/**
 * The import rule. The table is the fenced block that opens with ```imports in docs/ARCHITECTURE.md, one room a line:
 *
 *   room: allowed allowed ...
 *
 * where a room is a folder of src/ (or `index`, which is src/index.ts) and what is allowed is a room, one file of a
 * room (`block/driver.ts`), or a room's types only (`aio(types)`). A room may always import itself, except that no
 * driver imports another: a driver is `src/drivers/NAME/` or the files `src/drivers/NAME.ts` and
 * `src/drivers/NAME-*.ts`.
 */
import { type ImportOf, importsOf, type Scan } from './scan.ts';

export interface Problem {
  readonly file: string;
  readonly line: number;
  readonly text: string;
}

/**
 * Tests, and what only they use: `x.test.ts`, `x.conformance.ts`, `testing.ts`, `testing-x.ts`, a raw client, a seam's
 * cases.
 */
export function isTest(file: string): boolean {
  return /(\.test|\.conformance|\/(testing|testing-[\w-]+|seam-[\w-]+|raw-client))\.ts$/.test(file);
}

export type ImportTable = ReadonlyMap<string, readonly string[]>;

/** Rooms that may not use Node's modules: what is pure stays pure. */
const PURE_ROOMS = new Set(['base', 'proto']);
/** npm package -> the room it may be imported in. */
const PACKAGES: Readonly<Record<string, string>> = { koffi: 'native', commander: 'cli', 'basic-ftp': 'drivers' };

/** Reads the table out of the document's text. Throws an Error that says what is wrong with it. */
export function importTable(document: string): ImportTable {
  const block = /^```imports\n([\s\S]*?)^```/m.exec(document)?.[1];
  if (block === undefined) throw new Error("Could not read the import table: no block that opens with '```imports'");
  const table = new Map<string, string[]>();
  for (const line of block.split('\n').filter((text) => text.trim() !== '')) {
    const [, room, rest] = /^\s*([\w-]+):\s*(.*)$/.exec(line) ?? [];
    if (room === undefined || rest === undefined) throw new Error(`Could not read the import table: line '${line}'`);
    const words = rest.split(/[\s,]+/).filter((word) => word !== '' && word !== 'nothing' && word !== '-');
    table.set(room, words);
  }
  for (const [room, words] of table) {
    for (const word of words) {
      const target = word.replace(/\(types\)$/, '').split('/')[0]!;
      if (!table.has(target))
        throw new Error(`Could not read the import table: '${room}' allows '${word}', no such room`);
    }
  }
  return table;
}

/** `src/aio/op.ts` is in the room `aio`; `src/index.ts` in `index`. */
export function roomOf(file: string): string {
  const parts = file.split('/');
  return parts.length === 2 ? parts[1]!.replace(/\.ts$/, '') : parts[1]!;
}

function driverOf(file: string): string {
  return file.split('/')[2]!.replace(/[-.].*$/, '');
}

/**
 * The file that a relative specifier names, seen from `file`; a built worker's file is named with '.js' or no ending.
 */
export function resolveSpecifier(file: string, specifier: string): string {
  const parts = file.split('/').slice(0, -1);
  for (const part of specifier.split('/')) {
    if (part === '..') parts.pop();
    else if (part !== '.') parts.push(part);
  }
  const path = parts.join('/').replace(/\.(js)?$/, '.ts');
  return path.endsWith('.ts') ? path : `${path}.ts`;
}

function allows(words: readonly string[], target: string, one: ImportOf): boolean {
  const room = roomOf(target);
  const inSrc = target.replace(/^src\//, '');
  return words.includes(room) || words.includes(inSrc) || (one.typeOnly && words.includes(`${room}(types)`));
}

/** Why one import is against the table, or undefined. */
function refusal(table: ImportTable, file: string, one: ImportOf): string | undefined {
  const room = roomOf(file);
  const { specifier } = one;
  if (specifier.startsWith('node:')) {
    return PURE_ROOMS.has(room)
      ? `'${specifier}': the room '${room}' is pure; take what it gives as a parameter`
      : undefined;
  }
  if (!specifier.startsWith('.')) {
    const home = PACKAGES[specifier];
    return home === room ? undefined : `'${specifier}': only the room '${home ?? 'none'}' may import this package`;
  }
  if (!specifier.endsWith('.ts')) return `'${specifier}': write the file's name with its ending .ts`;
  const target = resolveSpecifier(file, specifier);
  if (!target.startsWith('src/')) return `'${specifier}': src may not import what is outside src`;
  if (isTest(target)) return `'${specifier}': a test may not be imported by the code`;
  if (roomOf(target) === room) {
    const other = room === 'drivers' && driverOf(target) !== driverOf(file);
    return other
      ? `'${specifier}': drivers do not import each other; move what they share to base or proto`
      : undefined;
  }
  const words = table.get(room);
  if (words === undefined)
    return `'${specifier}': the room '${room}' is not in the import table of docs/ARCHITECTURE.md`;
  if (allows(words, target, one)) return undefined;
  return `'${specifier}': '${room}' may import ${words.join(' ') || 'nothing'} (docs/ARCHITECTURE.md)`;
}

export function checkImports(table: ImportTable, file: string, scanned: Scan): Problem[] {
  const problems: Problem[] = [];
  for (const one of importsOf(scanned.tokens)) {
    const text = refusal(table, file, one);
    if (text !== undefined) problems.push({ file, line: one.line, text: `import of ${text}` });
  }
  return problems;
}

/** Files of src that nothing names: neither an import nor, for a worker's file, a string that leads to it. */
export function deadFiles(files: ReadonlyMap<string, Scan>, entries: ReadonlySet<string>): Problem[] {
  const used = new Set<string>();
  for (const [file, scanned] of files) {
    if (isTest(file)) continue;
    for (const token of scanned.tokens) {
      if ((token.kind === 'string' || token.kind === 'template') && /^\.\.?\//.test(token.text)) {
        used.add(resolveSpecifier(file, token.text));
      }
    }
  }
  return [...files.keys()]
    .filter((file) => file.startsWith('src/') && !isTest(file) && !entries.has(file) && !used.has(file))
    .map((file) => ({
      file,
      line: 1,
      text: 'only tests import this file: use it, delete it, or name it testing-NAME.ts',
    }));
}
