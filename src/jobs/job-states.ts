/** What a job can be, what may come after it, and what may be asked of it (SEMANTICS J1), as data. */

export type JobStatus =
  | 'undefined'
  | 'created'
  | 'running'
  | 'paused'
  | 'ready'
  | 'standby'
  | 'waiting'
  | 'pending'
  | 'aborting'
  | 'concluded'
  | 'null';

export const TRANSITIONS: Readonly<Record<JobStatus, readonly JobStatus[]>> = {
  undefined: ['created'],
  created: ['running', 'aborting', 'null'],
  running: ['paused', 'ready', 'waiting', 'aborting'],
  paused: ['running'],
  ready: ['standby', 'waiting', 'aborting'],
  standby: ['ready'],
  waiting: ['pending', 'aborting'],
  pending: ['aborting', 'concluded'],
  aborting: ['aborting', 'concluded'],
  concluded: ['null'],
  null: [],
};

export type JobVerb = 'cancel' | 'pause' | 'resume' | 'set-speed' | 'complete' | 'finalize' | 'dismiss';

const UNTIL_READY: readonly JobStatus[] = ['created', 'running', 'paused', 'ready', 'standby'];

export const VERBS: Readonly<Record<JobVerb, readonly JobStatus[]>> = {
  cancel: [...UNTIL_READY, 'waiting', 'pending'],
  pause: UNTIL_READY,
  resume: UNTIL_READY,
  'set-speed': UNTIL_READY,
  complete: ['ready', 'standby'],
  finalize: ['pending'],
  dismiss: ['concluded'],
};
