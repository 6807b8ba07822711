/** Making an image, as a job: it has no progress to speak of, but its end is waited for as that of any other. */
import type { AioContext } from '../aio/context.ts';
import { Job, type JobOptions } from './job.ts';

export class CreateJob extends Job {
  readonly type = 'create';
  readonly #make: () => Promise<void>;

  constructor(context: AioContext, make: () => Promise<void>, options: JobOptions) {
    super(context, options);
    this.#make = make;
    this.total = 1;
  }

  protected async run(): Promise<void> {
    await this.#make();
    this.current = 1;
  }
}
