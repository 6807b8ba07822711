import assert from 'node:assert/strict';
import { test } from 'node:test';
import { AioContext } from '../aio/context.ts';
import { Gate } from '../aio/op.ts';
import { Sim } from '../aio/sim/sim.ts';
import { BlockError, Errno } from '../base/errors.ts';
import type { Bytes } from '../base/units.ts';
import { CreateJob } from './create-job.ts';
import { Job, type JobOptions } from './job.ts';
import { TRANSITIONS, VERBS } from './job-states.ts';
import { JobTransaction } from './job-transaction.ts';

class TestJob extends Job {
  readonly type = 'test';
  readonly steps: readonly (Bytes | Gate | BlockError)[];
  readonly times: number[] = [];

  constructor(context: AioContext, steps: readonly (Bytes | Gate | BlockError)[], options: JobOptions) {
    super(context, options);
    this.steps = steps;
  }

  protected async run(): Promise<void> {
    for (const step of this.steps) {
      if (step instanceof BlockError) throw step;
      if (step instanceof Gate) await step.promise;
      else {
        await this.pausePoint(step);
        this.times.push(this.context.now());
      }
    }
  }

  stop(): void {
    this.hold();
  }

  go(): void {
    this.release();
  }
}

async function inSim(body: (context: AioContext) => Promise<void>): Promise<void> {
  const sim = new Sim(1);
  const context = new AioContext(sim.backend());
  await sim.complete(body(context));
}

function watched(): { readonly seen: string[]; readonly options: JobOptions } {
  const seen: string[] = [];
  return { seen, options: { id: 'j', autoDismiss: false, onStatus: (job) => seen.push(job.status) } };
}

test('J1 the table of states: what has concluded comes back from nowhere, and every state can be reached', () => {
  const reached = new Set<string>(['undefined']);
  for (const after of Object.values(TRANSITIONS)) for (const status of after) reached.add(status);
  assert.deepEqual([...reached].sort(), Object.keys(TRANSITIONS).sort());
  assert.deepEqual(TRANSITIONS.concluded, ['null']);
  assert.deepEqual(TRANSITIONS.null, []);
  assert.deepEqual(VERBS.complete, ['ready', 'standby']);
  assert.deepEqual(VERBS.finalize, ['pending']);
  assert.deepEqual(VERBS.dismiss, ['concluded']);
});

test('J1 J3 a job ends through waiting and pending, one that fails through aborting; each is told of', () =>
  inSim(async (context) => {
    const well = watched();
    const job = new TestJob(context, [10, 10], well.options);
    job.start();
    await job.ended;
    assert.deepEqual(well.seen, ['created', 'running', 'waiting', 'pending', 'concluded']);
    assert.equal(job.error, undefined);

    const badly = watched();
    const failing = new TestJob(context, [10, new BlockError(Errno.EIO, 'Could not: test')], badly.options);
    failing.start();
    await failing.ended;
    assert.deepEqual(badly.seen, ['created', 'running', 'aborting', 'concluded']);
    assert.equal(failing.error?.errno, Errno.EIO);
  }));

test('a paused job rests at its next pause point until it is resumed; a held one whoever resumes it', () =>
  inSim(async (context) => {
    const { seen, options } = watched();
    const gate = new Gate();
    const job = new TestJob(context, [gate, 1, 1], options);
    job.start();
    job.pause();
    assert.throws(() => job.pause(), { errno: Errno.EINVAL, message: /paused already/ });
    job.stop();
    gate.open();
    await Promise.resolve();
    job.resume();
    assert.throws(() => job.resume(), { errno: Errno.EINVAL, message: /not paused/ });
    const rested = new Gate();
    context.timer(() => rested.open(), 'rest').armIn(1_000_000);
    await rested.promise;
    assert.equal(job.status, 'paused');
    assert.deepEqual(job.times, []);
    job.go();
    await job.ended;
    assert.deepEqual(seen, ['created', 'running', 'paused', 'running', 'waiting', 'pending', 'concluded']);
  }));

test('a cancelled job ends with ECANCELED: before it began, where it rests, and at its next pause point', () =>
  inSim(async (context) => {
    const early = new TestJob(context, [1], { id: 'early', autoDismiss: false });
    early.cancel();
    await early.ended;
    assert.deepEqual([early.status, early.error?.errno, early.times], ['concluded', Errno.ECANCELED, []]);

    const resting = new TestJob(context, [1, 1], { id: 'resting' });
    resting.pause();
    resting.start();
    await Promise.resolve();
    assert.equal(resting.status, 'paused');
    resting.cancel();
    await resting.ended;
    assert.equal(resting.error?.errno, Errno.ECANCELED);

    const gate = new Gate();
    const working = new TestJob(context, [1, gate, 1], { id: 'working' });
    working.start();
    working.cancel();
    gate.open();
    await working.ended;
    assert.deepEqual([working.error?.errno, working.times.length], [Errno.ECANCELED, 1]);
  }));

test('J1 what is asked of a job in a state that does not accept it is refused', () =>
  inSim(async (context) => {
    const job = new TestJob(context, [1], { id: 'j', autoDismiss: false });
    job.start();
    await job.ended;
    for (const verb of ['cancel', 'pause', 'resume'] as const) {
      assert.throws(() => job[verb](), { errno: Errno.EINVAL, message: /it is concluded, which does not accept/ });
    }
    assert.throws(() => job.setSpeed(1), { errno: Errno.EINVAL });
  }));

class ReadyJob extends TestJob {
  readonly gentle: boolean;

  constructor(context: AioContext, gentle: boolean, options: JobOptions) {
    super(context, [], options);
    this.gentle = gentle;
  }

  protected override canComplete(): boolean {
    return true;
  }

  protected override endsGently(): boolean {
    return this.gentle;
  }

  protected override async run(): Promise<void> {
    await super.run();
    this.becomeReady();
    while (!this.completing && !this.endingGently) await this.idle();
  }
}

test('J1 one that is ready completes, rests in standby, and may be cancelled and end well', () =>
  inSim(async (context) => {
    const { seen, options } = watched();
    const job = new ReadyJob(context, true, options);
    assert.throws(() => job.complete(), { errno: Errno.EINVAL, message: /created, which does not accept complete/ });
    job.start();
    await job.readyOrEnded;
    job.pause();
    job.stop();
    job.go();
    await context.yield();
    job.resume();
    job.complete();
    assert.throws(() => job.dismiss(), { errno: Errno.EINVAL });
    await job.ended;
    assert.equal(job.error, undefined);
    assert.deepEqual(seen.slice(0, 3), ['created', 'running', 'ready']);
    assert.deepEqual(seen.slice(-3), ['waiting', 'pending', 'concluded']);
    job.dismiss();
    assert.equal(job.status, 'null');
    for (const [gentle, force, errno] of [
      [true, false, undefined],
      [true, true, Errno.ECANCELED],
      [false, false, Errno.ECANCELED],
    ] as const) {
      const one = new ReadyJob(context, gentle, { id: 'one' });
      one.start();
      await one.readyOrEnded;
      one.cancel(force);
      assert.throws(() => one.complete(), { errno: Errno.EINVAL });
      await one.ended;
      assert.deepEqual([one.error?.errno, one.status], [errno, 'null']);
    }
  }));

/** Notes its last steps. */
class StepJob extends TestJob {
  readonly notes: string[];
  readonly fails: boolean;

  constructor(
    context: AioContext,
    notes: string[],
    steps: readonly (Bytes | Gate)[],
    options: JobOptions,
    fails = false,
  ) {
    super(context, steps, options);
    this.notes = notes;
    this.fails = fails;
  }

  protected override async prepare(): Promise<void> {
    this.notes.push(`prepare ${this.id}`);
    if (this.fails) throw new BlockError(Errno.EIO, 'Could not: test');
  }

  protected override async clean(): Promise<void> {
    this.notes.push(`clean ${this.id} ${this.error?.errno ?? 'well'}`);
  }
}

test('J2 the last steps of a transaction wait for all of its jobs, and for who finalizes', () =>
  inSim(async (context) => {
    const notes: string[] = [];
    const gate = new Gate();
    const transaction = new JobTransaction();
    const a = new StepJob(context, notes, [1], { id: 'a', transaction, autoDismiss: false });
    const b = new StepJob(context, notes, [gate], { id: 'b', transaction, autoFinalize: false });
    a.start();
    b.start();
    await context.yield();
    assert.equal(a.status, 'waiting');
    assert.throws(() => a.finalize(), { errno: Errno.EINVAL });
    gate.open();
    while (b.status !== 'pending') await context.yield();
    assert.deepEqual([a.status, notes], ['pending', []]);
    a.finalize();
    await Promise.all([a.ended, b.ended]);
    assert.deepEqual(notes, ['prepare a', 'prepare b', 'clean a well', 'clean b well']);
    assert.deepEqual([a.status, b.status], ['concluded', 'null']);
  }));

test('J2 where one of a transaction fails or is cancelled, at whatever point, all others are given up', () =>
  inSim(async (context) => {
    for (const how of [
      'fails',
      'cancel running',
      'cancel waiting',
      'cancel pending',
      'prepare fails',
      'cancel created',
    ]) {
      const notes: string[] = [];
      const gate = new Gate();
      const transaction = new JobTransaction();
      const options = { transaction, autoDismiss: false, autoFinalize: false };
      const steps = how === 'fails' ? [new BlockError(Errno.EIO, 'Could not: test')] : [1];
      const a = new StepJob(context, notes, steps as never, { id: 'a', ...options }, how === 'prepare fails');
      const b = new StepJob(context, notes, [gate, 1], { id: 'b', ...options });
      const gone = new StepJob(context, notes, [1], { id: 'gone', ...options });
      (gone as unknown as { withdraw(): void }).withdraw();
      b.start();
      if (how !== 'cancel created') a.start();
      if (how === 'cancel running' || how === 'cancel created') a.cancel();
      await context.yield();
      if (how === 'cancel waiting') a.cancel();
      gate.open();
      if (how.includes('p') && !how.includes('created'))
        while (b.status !== 'pending' && !b.cancelled) await context.yield();
      if (how === 'cancel pending') b.cancel();
      if (how === 'prepare fails') b.finalize();
      await Promise.all([a.ended, b.ended]);
      const failure = how.includes('fails') ? Errno.EIO : Errno.ECANCELED;
      assert.deepEqual([a.error?.errno, b.error?.errno], [failure, Errno.ECANCELED], how);
      assert.ok(!notes.some((note) => note.includes('well') || note === 'prepare b'), `${how}: ${notes}`);
      assert.deepEqual([a.status, b.status], ['concluded', 'concluded'], how);
    }
  }));

test('J2 one whose last step has begun is not cancelled any more: it ends well, and says so', () =>
  inSim(async (context) => {
    const notes: string[] = [];
    const step = new Gate();
    const job = new (class extends StepJob {
      protected override async prepare(): Promise<void> {
        await step.promise;
      }
    })(context, notes, [1], { id: 'a', autoDismiss: false });
    job.start();
    while (job.status !== 'pending') await context.yield();
    await context.yield();
    job.cancel(true);
    step.open();
    await job.ended;
    assert.deepEqual([job.cancelled, job.error, notes], [false, undefined, ['clean a well']]);
  }));

test('making and amending are jobs of one step: done, failed, or cancelled before it begins', () =>
  inSim(async (context) => {
    let made = 0;
    const make = async (): Promise<void> => void made++;
    const create = new CreateJob(context, make, { id: 'c', autoDismiss: false });
    create.start();
    await create.ended;
    assert.deepEqual(
      [create.type, made, create.current, create.total, create.status],
      ['create', 1, 1, 1, 'concluded'],
    );
    const fail = async (): Promise<void> => {
      throw new BlockError(Errno.ENOSPC, 'Could not: test');
    };
    const amend = new CreateJob(context, fail, { id: 'a' }, 'amend');
    amend.start();
    await amend.ended;
    assert.deepEqual([amend.type, amend.error?.errno, amend.current], ['amend', Errno.ENOSPC, 0]);
    const paused = new CreateJob(context, make, { id: 'p' });
    paused.pause();
    paused.start();
    await context.yield();
    paused.cancel();
    await paused.ended;
    assert.deepEqual([made, paused.error?.errno], [1, Errno.ECANCELED]);
  }));

test('one that rests for its speed is paused at once', () =>
  inSim(async (context) => {
    const { seen, options } = watched();
    const job = new TestJob(context, [1_000_000, 1_000_000, 1], { ...options, speed: 1000 });
    job.start();
    const soon = new Gate();
    context.timer(() => soon.open(), 'soon').armIn(1_000_000);
    await soon.promise;
    assert.deepEqual([job.status, job.busy], ['running', false]);
    job.pause();
    await context.yield();
    assert.equal(job.status, 'paused');
    job.cancel();
    await job.ended;
    assert.deepEqual(seen.slice(0, 4), ['created', 'running', 'paused', 'running']);
  }));

test('who pauses and resumes a job, or drains its nodes, again and again does not make it faster than its speed', () =>
  inSim(async (context) => {
    const job = new TestJob(context, new Array(20).fill(1000) as Bytes[], { id: 'j', speed: 10_000 });
    const begun = context.now();
    job.start();
    while (job.status === 'running' || job.status === 'paused') {
      job.pause();
      job.stop();
      await context.yield();
      job.resume();
      job.go();
      const soon = new Gate();
      context.timer(() => soon.open(), 'soon').armIn(10_000_000);
      await soon.promise;
    }
    const seconds = (job.times.at(-1)! - begun) / 1e9;
    assert.ok(seconds > 1.7 && seconds < 2.3, `20,000 bytes took ${seconds} s`);
  }));

test('a job does not go faster than its speed, and at once as fast as it is told', () =>
  inSim(async (context) => {
    const job = new TestJob(context, new Array(20).fill(1000) as Bytes[], { id: 'j', speed: 10_000 });
    const begun = context.now();
    job.start();
    await job.ended;
    const seconds = (job.times.at(-1)! - begun) / 1e9;
    assert.ok(seconds > 1.7 && seconds < 2.1, `20,000 bytes took ${seconds} s`);

    const slow = new TestJob(context, [1000, 1000, 1000], { id: 'slow', speed: 1 });
    slow.start();
    const later = new Gate();
    context.timer(() => later.open(), 'later').armIn(5e9);
    await later.promise;
    assert.equal(slow.status, 'running');
    assert.throws(() => slow.setSpeed(-1), { errno: Errno.EINVAL });
    const at = context.now();
    slow.setSpeed(0);
    await slow.ended;
    assert.equal(slow.times.at(-1), at);
  }));
