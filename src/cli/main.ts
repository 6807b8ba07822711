#!/usr/bin/env node
/** The `blockplane` command of the compiled modules; what is published begins in published.ts. */
import { main } from './command-line.ts';

process.exitCode = await main(process.argv.slice(2), process.argv[1]);
