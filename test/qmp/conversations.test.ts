/** All conversations, and what they come to: see docs/COMPATIBILITY.md for what is different. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { SCHEMA } from '../../src/qmp/schema/schema.ts';
import { needs } from '../harness.ts';
import { Compared, type Conversation, hold } from './conversation.ts';
import * as bitmaps from './conversations/bitmaps.ts';
import * as chains from './conversations/chains.ts';
import * as change from './conversations/change.ts';
import * as control from './conversations/control.ts';
import * as deprecated from './conversations/deprecated.ts';
import * as drive from './conversations/drive.ts';
import * as events from './conversations/events.ts';
import * as exports from './conversations/exports.ts';
import * as fleecing from './conversations/fleecing.ts';
import * as incremental from './conversations/incremental.ts';
import * as jobs from './conversations/jobs.ts';
import * as manual from './conversations/manual.ts';
import * as nodes from './conversations/nodes.ts';
import * as objects from './conversations/objects.ts';
import * as reopen from './conversations/reopen.ts';
import * as snapshots from './conversations/snapshots.ts';

const ALL: readonly Conversation[] = [
  ...[bitmaps, chains, change, control, deprecated, drive, events, exports, fleecing, incremental, jobs],
  ...[manual, nodes, objects, reopen, snapshots],
].flatMap((one) => Object.values(one));

const WITH = needs('qemu-storage-daemon', 'qemu-img', 'qemu-io');
const compared = new Compared();

for (const one of ALL) {
  test(`${one.name}: as in qemu-storage-daemon`, { ...WITH, skip: WITH.skip || (one.skip ?? false) }, (t) =>
    hold(t, one, compared),
  );
}

/** At least so many: each is a command, or a line, that both have answered alike. */
const EXCHANGES = 300;

/** Commands that are newer than qemu-storage-daemon 7.2, which does not know them. */
const NEWER = ['block-job-change', 'blockdev-set-active', 'qom-list-get'];

/** Commands whose answers are lists of what there is: schema.test.ts compares them. */
const LISTS = ['query-commands', 'query-qmp-schema'];

/** Commands that both can only refuse, and why. */
const REFUSED: Readonly<Record<string, string>> = {
  'chardev-change': 'chardev.test.ts has it',
  'x-blockdev-change': 'only quorum has children that come and go',
};

/** Events that neither tells of, and why. */
const UNTOLD: Readonly<Record<string, string>> = {
  BLOCK_IO_ERROR: 'devices of guests tell of it',
  QUORUM_FAILURE: 'there is no quorum here',
  QUORUM_REPORT_BAD: 'there is no quorum here',
  VSERPORT_CHANGE: 'devices of guests tell of it',
};

test('every command, event and kind of action is compared, or there is a reason', WITH, (t) => {
  t.diagnostic(`${compared.exchanges} exchanges were compared`);
  assert.ok(compared.exchanges >= EXCHANGES, `${compared.exchanges} exchanges`);
  const missing = (all: readonly string[], had: { has(name: string): boolean }) => all.filter((one) => !had.has(one));
  const commands = Object.keys(SCHEMA.commands);
  assert.equal(commands.length, 77);
  assert.deepEqual(missing(commands, compared.commands).sort(), [...NEWER, ...LISTS]);
  assert.deepEqual(missing(commands, compared.succeeded).sort(), [...NEWER, ...LISTS, ...Object.keys(REFUSED)].sort());
  assert.deepEqual(missing(Object.keys(SCHEMA.events), compared.events).sort(), Object.keys(UNTOLD).sort());
  // `abort` is what makes a transaction fail.
  assert.deepEqual(missing(SCHEMA.enums.TransactionActionKind, compared.actions), ['abort']);
});
