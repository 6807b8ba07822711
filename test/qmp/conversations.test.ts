/** All conversations, and what they come to. */
import { test } from 'node:test';
import { needs } from '../harness.ts';
import { Compared, type Conversation, converse } from './conversation.ts';
import * as bitmaps from './conversations/bitmaps.ts';
import * as change from './conversations/change.ts';
import * as control from './conversations/control.ts';
import * as drive from './conversations/drive.ts';
import * as exports from './conversations/exports.ts';
import * as jobs from './conversations/jobs.ts';
import * as nodes from './conversations/nodes.ts';
import * as objects from './conversations/objects.ts';
import * as reopen from './conversations/reopen.ts';
import * as snapshots from './conversations/snapshots.ts';

const ALL: readonly Conversation[] = [
  ...[bitmaps, change, control, drive, exports, jobs, nodes, objects, reopen, snapshots],
].flatMap((one) => Object.values(one));

const WITH = needs('qemu-storage-daemon', 'qemu-img', 'qemu-io');
const compared = new Compared();

for (const one of ALL) {
  test(`${one.name}: as in qemu-storage-daemon`, { ...WITH, skip: WITH.skip || (one.skip ?? false) }, (t) =>
    converse(t, one, compared),
  );
}

test('coverage', WITH, (t) => {
  t.diagnostic(`${compared.exchanges} exchanges compared`);
  t.diagnostic(JSON.stringify([...compared.commands]));
  t.diagnostic(JSON.stringify([...compared.events]));
  t.diagnostic(JSON.stringify([...compared.actions]));
});
