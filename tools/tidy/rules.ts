/**
 * What a file may not hold, and how long its lines, its functions and it may be. Each message says what to do instead.
 */
import { functionsOf } from './functions.ts';
import { isTest, type Problem } from './imports.ts';
import type { Scan } from './scan.ts';

const FILE_LINES_MAX = 500;
const FUNCTION_LINES_MAX = 70;
const LINE_COLUMNS_MAX = 120;

interface Ban {
  readonly pattern: RegExp;
  /** Looked for in the code alone, or in the whole text with its comments and strings. */
  readonly within: 'code' | 'text';
  /** The files it is banned in. */
  readonly where: RegExp;
  /** Files of those that may, and why is said in `instead`. */
  readonly except?: RegExp;
  readonly instead: string;
}

const ENGINE = /^src\//;
const ANY = /^(src|test|bench|tools)\//;

/** In pieces, so that this file does not hold what it bans. */
const UNFINISHED = new RegExp(
  `\\b(${['TO', 'FIX', 'X'].map((word, at) => word + ['DO', 'ME', 'XX'][at]).join('|')})\\b`,
);
const MACHINE_PATHS = new RegExp(
  `(^|[^\\w.])/(${['wo.rk', 'ho.me', 'ro.ot', 'Us.ers'].join('|').replaceAll('.', '')})/\\w`,
);

const BANS: readonly Ban[] = [
  {
    pattern: /\bnew Promise\b/,
    within: 'code',
    where: ENGINE,
    except: /^src\/aio\//,
    instead: 'a promise made here is not seen by the loop: use WaitOp or Gate of aio/op.ts',
  },
  {
    pattern: /\bPromise\.withResolvers\b/,
    within: 'code',
    where: ENGINE,
    instead: 'a promise made here is not seen by the loop: use Gate of aio/op.ts',
  },
  {
    pattern: /(?<!\.)\bBuffer\./,
    within: 'code',
    where: ENGINE,
    except: /^src\/(cli\/|aio\/pool\/|lib\/disk-args\.ts$)/,
    instead: "Buffers are for the command line and Node's own sockets: use Uint8Array, DataView, TextEncoder",
  },
  {
    pattern: /\bconsole\./,
    within: 'code',
    where: ENGINE,
    except: /^src\/cli\//,
    instead: 'only the command line prints: return a value or throw a BlockError',
  },
  {
    pattern: /\bprocess\.(on|once)\b/,
    within: 'code',
    where: ENGINE,
    except: /^src\/(cli\/|aio\/iothread-worker\.ts$)/,
    instead: 'process events belong to the program: take a signal or a callback',
  },
  {
    pattern: /\bBigInt\b|\bbigint\b|\b\d[\d_a-fA-Fx]*n\b/,
    within: 'code',
    where: /^src\/(block|exports)\//,
    instead: 'offsets are numbers up to 2^53-1, 64-bit fields two u32 halves',
  },
  {
    pattern: /(\bas|[:<|])\s*any\b(?!\s*\()|,\s*any\s*[>,]/,
    within: 'code',
    where: ANY,
    instead: 'name the type, or take unknown and check it',
  },
  { pattern: /@ts-(ignore|nocheck|expect-error)\b/, within: 'text', where: ANY, instead: 'mend the type' },
  { pattern: /\.only\(|\bonly: true\b/, within: 'code', where: ANY, instead: 'run one test with npm test -- PATTERN' },
  { pattern: UNFINISHED, within: 'text', where: ANY, instead: 'finish it, or file an issue' },
  {
    pattern: MACHINE_PATHS,
    within: 'text',
    where: ANY,
    instead: 'a path of one machine: build it from import.meta.url',
  },
];

function banned(file: string, scanned: Scan): Problem[] {
  const problems: Problem[] = [];
  for (const { pattern, within, where, except, instead } of BANS) {
    if (!where.test(file) || except?.test(file) || (where !== ANY && isTest(file))) continue;
    (within === 'code' ? scanned.code : scanned.lines).forEach((line, at) => {
      const found = pattern.exec(line)?.[0];
      if (found !== undefined) problems.push({ file, line: at + 1, text: `'${found.trim()}': ${instead}` });
    });
  }
  return problems;
}

function tooLong(file: string, scanned: Scan): Problem[] {
  const problems: Problem[] = [];
  const count = scanned.lines.at(-1) === '' ? scanned.lines.length - 1 : scanned.lines.length;
  if (count > FILE_LINES_MAX) {
    problems.push({ file, line: count, text: `${count} lines: split the file by noun at ${FILE_LINES_MAX}` });
  }
  scanned.lines.forEach((line, at) => {
    const columns = line.length;
    if (columns <= LINE_COLUMNS_MAX) return;
    problems.push({ file, line: at + 1, text: `${columns} columns: break the line at ${LINE_COLUMNS_MAX}` });
  });
  // A test's describe() is one long function by nature.
  if (isTest(file)) return problems;
  for (const { name, line, lines } of functionsOf(scanned.tokens)) {
    if (lines <= FUNCTION_LINES_MAX) continue;
    problems.push({ file, line, text: `'${name}' has ${lines} lines: split it, the limit is ${FUNCTION_LINES_MAX}` });
  }
  return problems;
}

export function checkFile(file: string, scanned: Scan): Problem[] {
  return [...banned(file, scanned), ...tooLong(file, scanned)];
}

/** What the tests of a file are called. */
function testNames(text: string): string[] {
  return [...text.matchAll(/\b(?:test|it|describe)\(\s*['"`]([^\n]*)/g)].map((found) => found[1]!);
}

/**
 * The rows of docs/SEMANTICS.md: a table row or list item that begins with a number such as E2. Each names, as
 * `src/...test.ts` or `test/...test.ts`, a test file that exists and has a test whose name begins with that number. A
 * row that says `not built` names none, and no test of `allTests` has a name that begins with its number.
 */
export function checkSemantics(
  file: string,
  document: string,
  readTest: (path: string) => string | undefined,
  allTests: ReadonlyMap<string, string> = new Map(),
): Problem[] {
  const problems: Problem[] = [];
  const named = (id: string): RegExp => new RegExp(`['"\`](?:[A-Z]\\d+[a-z]?,? )*${id}\\b`);
  document.split('\n').forEach((row, at) => {
    const id = /^(?:\||[-*])\s*\**([A-Z]\d+[a-z]?)\b/.exec(row)?.[1];
    if (id === undefined) return;
    const problem = (text: string) => problems.push({ file, line: at + 1, text: `${id}: ${text}` });
    if (/\bnot built\b/i.test(row)) {
      for (const [path, text] of allTests) {
        if (testNames(text).some((name) => named(id).test(`'${name}`))) {
          problem(`the row says 'not built', but a test in ${path} begins with '${id} '`);
        }
      }
      return;
    }
    const paths = row.match(/\b(?:src|test)\/[\w./-]+\.test\.ts\b/g) ?? [];
    if (paths.length === 0) problem("name the test file that shows it (src/...test.ts), or say 'not built'");
    const texts: string[] = [];
    for (const path of paths) {
      const text = readTest(path);
      if (text === undefined) problem(`'${path}' does not exist`);
      else texts.push(text);
    }
    if (texts.length > 0 && !texts.some((text) => named(id).test(text)))
      problem(`no test in ${paths[0]} begins with '${id} '`);
  });
  return problems;
}
