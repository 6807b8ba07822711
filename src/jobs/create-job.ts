/** Making or amending an image, as a job: it has no progress to speak of, but its end is waited for as that of any
 *  other. It can be cancelled before it begins, and not in its midst. */
import type { AioContext } from '../aio/context.ts';
import { Job, type JobOptions } from './job.ts';

export class CreateJob extends Job {
  readonly type: 'create' | 'amend';
  readonly #make: () => Promise<void>;

  constructor(
    context: AioContext,
    make: () => Promise<void>,
    options: JobOptions,
    type: 'create' | 'amend' = 'create',
  ) {
    super(context, options);
    this.type = type;
    this.#make = make;
    this.total = 1;
  }

  protected async run(): Promise<void> {
    await this.pausePoint(0);
    await this.#make();
    this.current = 1;
  }
}
