/**
 * The house rules that can be checked by machine, on every file, and that the checks themselves find what they look
 * for.
 */
import assert from 'node:assert/strict';
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { describe, it } from 'node:test';
import { fileURLToPath } from 'node:url';
import { functionsOf } from '../tools/tidy/functions.ts';
import { checkImports, deadFiles, importTable, isTest, type Problem, resolveSpecifier } from '../tools/tidy/imports.ts';
import { checkFile, checkSemantics } from '../tools/tidy/rules.ts';
import { importsOf, type Scan, scan } from '../tools/tidy/scan.ts';

/** The build may be anywhere below the project: package.json marks its root. */
function projectRoot(): string {
  let folder = dirname(fileURLToPath(import.meta.url));
  while (!existsSync(join(folder, 'package.json'))) folder = dirname(folder);
  return folder;
}

const root = projectRoot();

/** What package.json and the command line start, and the files that it publishes by names of their own. */
const ENTRIES = new Set([
  'src/index.ts',
  'src/cli/main.ts',
  'src/cli/published.ts',
  'src/lib/conformance.ts',
  'src/lib/driver-api.ts',
  'src/daemon/index.ts',
  'src/img/index.ts',
]);

/**
 * Coroutine tools for authors of drivers, complete before every one of them has a user of our own (docs/SEMANTICS.md,
 * C).
 */
const TOOLS = ['co-queue', 'co-rwlock', 'co-timeout', 'defer-call', 'remote', 'task-pool'].map(
  (n) => `src/aio/${n}.ts`,
);

function readText(path: string): string | undefined {
  return existsSync(join(root, path)) ? readFileSync(join(root, path), 'utf8') : undefined;
}

function sourceFiles(): Map<string, Scan> {
  const files = new Map<string, Scan>();
  for (const folder of ['src', 'test', 'bench', 'tools']) {
    for (const entry of readdirSync(join(root, folder), { recursive: true, encoding: 'utf8' })) {
      const path = `${folder}/${entry.replaceAll('\\', '/')}`;
      if (/\.(ts|mjs)$/.test(path)) files.set(path, scan(readFileSync(join(root, path), 'utf8')));
    }
  }
  return files;
}

function report(problems: readonly Problem[]): void {
  if (problems.length > 0) assert.fail(problems.map(({ file, line, text }) => `${file}:${line}: ${text}`).join('\n'));
}

describe('tidy: the project', () => {
  const files = sourceFiles();

  it('every file keeps the limits and holds nothing that is banned', () => {
    report([...files].flatMap(([file, scanned]) => checkFile(file, scanned)));
  });

  it('every import of src is in the table of docs/ARCHITECTURE.md', () => {
    const document = readText('docs/ARCHITECTURE.md');
    assert.ok(document !== undefined, 'docs/ARCHITECTURE.md is missing: it holds the import table');
    const table = importTable(document);
    const sources = [...files].filter(([file]) => file.startsWith('src/') && !isTest(file));
    report(sources.flatMap(([file, scanned]) => checkImports(table, file, scanned)));
  });

  it('every file of src is used', () => report(deadFiles(files, new Set([...ENTRIES, ...TOOLS]))));

  it('every row of docs/SEMANTICS.md names a test that bears its number', () => {
    const document = readText('docs/SEMANTICS.md');
    assert.ok(document !== undefined, 'docs/SEMANTICS.md is missing: it holds the behaviours and their tests');
    const tests = [...files].filter(([path]) => path.endsWith('.test.ts') && path !== 'src/tidy.test.ts');
    const texts = new Map(tests.map(([path, { lines }]) => [path, lines.join('\n')]));
    report(checkSemantics('docs/SEMANTICS.md', document, readText, texts));
  });
});

describe('tidy: the checks find what they look for', () => {
  const texts = (file: string, source: string) => checkFile(file, scan(source)).map((problem) => problem.text);
  const finds = (file: string, source: string, what: RegExp) => assert.match(texts(file, source).join('\n'), what);
  const passes = (file: string, source: string) => assert.deepEqual(texts(file, source), []);

  it('banned words are found in code', () => {
    finds('src/block/x.ts', 'const p = new Promise(() => {});', /WaitOp or Gate/);
    finds('src/lib/x.ts', 'Buffer.alloc(1)', /Uint8Array/);
    finds('src/aio/x.ts', 'console.log(1)', /only the command line prints/);
    finds('src/lib/x.ts', "process.on('exit', f)", /process events/);
    finds('src/exports/x.ts', 'const n = 0x1fn;', /two u32 halves/);
    finds('src/block/x.ts', 'let n: bigint;', /two u32 halves/);
    for (const bad of ['let x: any;', 'f(x as any)', 'new Map<string, any>()', 'type T = A | any;']) {
      finds('src/aio/x.ts', bad, /name the type/);
    }
    finds('src/aio/x.ts', `// @ts-${'ignore'}`, /mend the type/);
    finds('src/aio/x.test.ts', `it.${'only'}('x', f)`, /npm test -- PATTERN/);
    finds('src/aio/x.ts', `// ${'TO'}${'DO'}: later`, /finish it/);
    finds('src/aio/x.ts', `const p = '/${'home'}/someone';`, /one machine/);
  });

  it('banned words in comments, strings, templates and regular expressions are let be', () => {
    passes(
      'src/block/x.ts',
      "// new Promise(x)\nconst a = 'console.log'; /* Buffer.from */ const b = /console\\./g;\n",
    );
    // biome-ignore lint/suspicious/noTemplateCurlyInString: a template is what is looked at
    passes('src/block/x.ts', 'const t = `console.log ${a / b} 12n ${`x${1}`} Buffer.`;\n');
    passes('src/base/x.ts', 'new SharedArrayBuffer(1); ArrayBuffer.isView(x); const company = many(x);\n');
  });

  it('code in a template and code behind a string are still seen', () => {
    // biome-ignore lint/suspicious/noTemplateCurlyInString: a template is what is looked at
    finds('src/block/x.ts', 'const t = `a ${console.log(1)} b`;', /only the command line prints/);
    finds('src/block/x.ts', "const t = 'it\\'s'; console.log(t);", /only the command line prints/);
    finds('src/block/x.ts', 'const t = a / b; console.log(c / d);', /only the command line prints/);
  });

  it('a ban is lifted where its reason does not hold', () => {
    passes('src/aio/x.ts', 'const p = new Promise(() => {});');
    passes('src/cli/x.ts', "console.log(1); Buffer.alloc(1); process.on('exit', f);");
    passes('src/block/x.test.ts', 'console.log(new Promise(f));');
  });

  it('long files, long lines and long functions are found', () => {
    finds('src/aio/x.ts', 'a;\n'.repeat(501), /501 lines/);
    passes('src/aio/x.ts', 'a;\n'.repeat(500));
    finds('src/aio/x.ts', `const x = '${'y'.repeat(120)}';`, /columns/);
    const body = (count: number) => 'a;\n'.repeat(count);
    finds('src/aio/x.ts', `function f() {\n${body(69)}}\n`, /'f' has 71 lines/);
    passes('src/aio/x.ts', `function f() {\n${body(68)}}\n`);
    finds('src/aio/x.ts', `class C {\n  get #x(): Map<string, { a: 1 }> {\n${body(69)}}\n}\n`, /'#x' has 71 lines/);
    finds('src/aio/x.ts', `const f = async (a: () => void): Promise<void> => {\n${body(69)}};\n`, /arrow function/);
    passes('src/aio/x.test.ts', `describe('x', () => {\n${body(100)}});\n`);
  });

  it('functions are told from blocks that look like them', () => {
    const names = (source: string) => functionsOf(scan(source).tokens).map(({ name }) => name);
    assert.deepEqual(names('if (a) { b(); } while (c) { d(); } for (;;) { } switch (e) { case f(g): { } }'), []);
    assert.deepEqual(names('function* a<T extends { b: 1 }>(c: T): Iterable<{ d: T }> { }'), ['a']);
    assert.deepEqual(
      names('class A { constructor() { } async [b](): Promise<void> { } static c(): d is { e: 1 } { } }'),
      ['constructor', ']', 'c'],
    );
    assert.deepEqual(names('interface A { b(c: number): { d: 1 }; e(): void; }'), []);
    assert.deepEqual(names('const a = b ? c(d) : { e: 1 }; f(() => { g(); });'), ['an arrow function']);
  });

  it('imports are read in every form', () => {
    const source = "import a, { type b } from './a.ts';\nimport type { C } from './c.ts';\nimport './d.ts';\n";
    const more = "export * from './e.ts';\nexport type { F } from './f.ts';\nconst g = await import('./g.ts');\n";
    assert.deepEqual(
      importsOf(scan(source + more).tokens).map(({ specifier, line, typeOnly }) => `${line} ${specifier} ${typeOnly}`),
      ['1 ./a.ts false', '2 ./c.ts true', '3 ./d.ts false', '4 ./e.ts false', '5 ./f.ts true', '6 ./g.ts false'],
    );
    assert.equal(resolveSpecifier('src/aio/x.ts', '../base/../base/y.js'), 'src/base/y.ts');
  });

  it('imports against the table are found', () => {
    const rooms =
      'base:\nproto: base\nnative: base\naio: base native\nblock: base aio\ndrivers: base block/driver.ts\n';
    const table = importTable(`# x\n\`\`\`imports\n${rooms}cli: base aio(types)\n\`\`\`\n`);
    const found = (file: string, source: string) => checkImports(table, file, scan(source)).map(({ text }) => text);
    const bad = (file: string, source: string, what: RegExp) => assert.match(found(file, source).join('\n'), what);
    const good = (file: string, source: string) => assert.deepEqual(found(file, source), []);
    bad('src/base/x.ts', "import 'node:fs';", /pure/);
    bad('src/aio/x.ts', "import '../block/y.ts';", /'aio' may import base native/);
    bad('src/drivers/a.ts', "import './b.ts';", /drivers do not import each other/);
    bad('src/drivers/a/x.ts', "import '../b/y.ts';", /drivers do not import each other/);
    bad('src/drivers/a.ts', "import '../block/graph.ts';", /block\/driver\.ts/);
    bad('src/cli/x.ts', "import { a } from '../aio/op.ts';", /aio\(types\)/);
    bad('src/aio/x.ts', "import koffi from 'koffi';", /only the room 'native'/);
    bad('src/aio/x.ts', "const k = require('koffi');", /only the room 'native'/);
    bad('src/aio/x.ts', "import '../base/y.js';", /ending \.ts/);
    bad('src/other/x.ts', "import '../base/y.ts';", /not in the import table/);
    bad('src/aio/x.ts', "import './y.test.ts';", /a test may not/);
    good('src/drivers/a.ts', "import './a-locks.ts'; import '../block/driver.ts';");
    good('src/cli/x.ts', "import type { A } from '../aio/op.ts';");
    good('src/native/x.ts', "import koffi from 'koffi'; import 'node:fs'; import './y.ts';");
    assert.throws(() => importTable('# none'), /no block that opens with/);
    assert.throws(() => importTable('```imports\nbase: nowhere\n```\n'), /no such room/);
  });

  it('a file that only its own test names is dead', () => {
    const files = new Map([
      [
        'src/index.ts',
        // biome-ignore lint/suspicious/noTemplateCurlyInString: a template is what is looked at
        scan("import './a.ts'; new URL('./worker.js', import.meta.url); new URL(`./other.${ending}`, here);"),
      ],
      ['src/a.ts', scan('')],
      ['src/worker.ts', scan('')],
      ['src/other.ts', scan('')],
      ['src/b.ts', scan('')],
      ['src/b.test.ts', scan("import './b.ts';")],
    ]);
    assert.deepEqual(
      deadFiles(files, new Set(['src/index.ts'])).map(({ file }) => file),
      ['src/b.ts'],
    );
  });

  it('rows without a test, or with one that does not exist or bear their number, are found', () => {
    const rows = [
      '| E1 | a | src/a.test.ts |',
      '| E2 | b | src/a.test.ts |',
      '| E3 | c | |',
      '- P1 d `test/x.test.ts`',
    ];
    const more = ['- C1 e: not built', '| text | f |'];
    const read = (path: string) => (path === 'src/a.test.ts' ? "it('E1 holds', f)" : undefined);
    assert.deepEqual(
      checkSemantics('x.md', [...rows, ...more].join('\n'), read).map(
        ({ line, text }) => `${line} ${text.slice(0, 16)}`,
      ),
      ['2 E2: no test in s', '3 E3: name the tes', "4 P1: 'test/x.test"],
    );
  });

  it("a row that says 'not built' though a test bears its number is found", () => {
    const rows = ['| C1 a | not built: no need |', '| C2 b | not built |', '| C3 c | not built |'].join('\n');
    const tests = new Map([['src/a.test.ts', "const C2 = 'C2';\ntest('C1 holds', f);\n  it(`E1, C3 holds`, g);"]]);
    assert.deepEqual(
      checkSemantics('x.md', rows, () => undefined, tests).map(({ line, text }) => `${line} ${text.slice(0, 33)}`),
      ["1 C1: the row says 'not built', but", "3 C3: the row says 'not built', but"],
    );
  });
});
