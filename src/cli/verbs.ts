/** What the verbs are called and what they take. What they do is loaded when they are. */
import type { Command } from 'commander';
import type { RawImageOptions } from './image-args.ts';
import type { EarlyThread } from './serve.ts';
import type { RawServeOptions } from './serve-options.ts';

type Ended = (exitCode: number) => void;

const FORMAT = 'raw or qcow2 (default: qcow2 for *.qcow2; else raw, unless it looks like something else)';
const REFERENCES = 'files that an image may lead to: none, directory (default: inside its own) or all';
const ALLOW = 'files in here may be led to as well, also by absolute names; repeat for more';
const KEY_FILE = 'file with the passphrase of an encrypted image, every byte of it';

const OVERLAY = 'keep what is read and written in this qcow2 file, made if need be; repeat for each IMAGE';
const HTTP = 'options of web servers, for URLs: name=value,...; a secret by its file, as in password-file=PATH';

const OBJECT = 'an object that options name by its id, as in secret,id=sec0,file=PATH; repeat for more';

const collect = (value: string, before: readonly string[] = []): readonly string[] => [...before, value];

const SERVE_HELP = `
Serves each IMAGE as an NBD export until SIGINT or SIGTERM, which let requests in
flight finish and put everything on stable storage. Prints one NBD URI a line, in the order of the images, as
soon as clients can connect. Without IMAGE: a fresh, sparse, temporary qcow2 image.

Examples:
  blockplane serve disk.qcow2
  blockplane serve --listen 127.0.0.1:10809 --export-name disk --read-only disk.img
  blockplane serve --snapshot monday disk.qcow2                       # as it was, read-only
  blockplane serve --allow-directory /var/lib/bases overlay.qcow2     # its backing file is there
  blockplane serve --overlay mine.qcow2 --prefetch /mnt/remote/base.qcow2   # becomes local
  blockplane serve --http-opts username=me,password-file=pw https://example.org/disk.qcow2
  blockplane serve --vhost-user /run/vm.sock disk.qcow2               # a vhost-user-blk device, not NBD
  blockplane serve --iothreads 2 --socket /run/nbd.sock a.img b.img   # a: nbd.sock, b: nbd.sock.io1`;

export function addServe(program: Command, early: EarlyThread | undefined, ended: Ended): void {
  program
    .command('serve')
    .description('serve disk images over NBD')
    .argument('[IMAGE...]', 'disk image files, block devices, NBD URIs or http(s) URLs')
    .option('-f, --format <format>', FORMAT)
    .option('--image-opts', 'each IMAGE is a tree of options: driver=qcow2,file.driver=file,file.filename=disk.qcow2')
    .option('--references <which>', REFERENCES)
    .option('--allow-directory <path>', ALLOW, collect, [])
    .option('--snapshot <name>', 'serve this internal snapshot (name or id) of qcow2 images, read-only')
    .option('--key-file <path>', KEY_FILE)
    .option('--object <type,id=id,...>', OBJECT, collect, [])
    .option('--overlay <file>', OVERLAY, collect, [])
    .option('--prefetch', 'copy what is missing in the overlay in the background, until it needs the IMAGE no more')
    .option('--http-opts <options>', HTTP, collect)
    .option('--download', 'fetch an IMAGE at a URL whole, first, where its server does not serve ranges')
    .option('-k, --socket <path>', 'listen on a unix socket (default: one in a private temporary directory)')
    .option('-l, --listen <host:port>', 'listen on TCP; port 0 takes a free one')
    .option('-V, --vhost-user <path>', 'serve to a virtual machine on this socket; repeat for each IMAGE', collect, [])
    .option('--queues <count>', 'the most queues of a virtual machine (default: 64)')
    .option('-x, --export-name <name>', 'name of the export; repeat for each IMAGE', collect, [])
    .option('-D, --description <text>', 'description of the export; repeat for each IMAGE', collect, [])
    .option('-B, --bitmap <name>', 'offer this dirty bitmap of each IMAGE; repeat for several', collect, [])
    .option('-r, --read-only', 'refuse writes')
    .option('-U, --force-share', 'ignore the locks of other programs; only with --read-only')
    .option('--aio <backend>', 'ring (io_uring) or pool (node); default: ring where the system allows it')
    .option('--cache <mode>', 'writeback (default), none, writethrough, directsync or unsafe')
    .option('--discard <mode>', 'unmap (default) or ignore')
    .option('--detect-zeroes <mode>', 'off (default), on or unmap')
    .option('--iothread <name>', 'IOThread of an image; repeat for each IMAGE, same name same thread', collect, [])
    .option('--iothreads <count>', 'spread the images over so many IOThreads (default: 1)')
    .option(
      '--client-threads <count>',
      'spread the clients of an image, or the queues of its machine, over so many IOThreads (default: 1)',
    )
    .option('--poll-max-ns <ns>', 'longest time an IOThread spins before it sleeps (default: 65536)')
    .option('--max-connections <count>', 'clients at a time; 0 for no limit (default: 100)')
    .option('--handshake-seconds <seconds>', 'time a client has for the handshake (default: 10)')
    .option('--memory <size>', 'payload memory of all connections together, 32M to 1G (default: 64M)')
    .option('--tls <mode>', 'off, on (for clients that ask for it) or require (default, with one of the next three)')
    .option('--tls-certificates <folder>', 'TLS with server-cert.pem, server-key.pem and ca-cert.pem of this folder')
    .option('--tls-psk <file>', 'TLS with the keys of this file, a line USER:HEXKEY for each client')
    .option('--tls-creds <id>', 'TLS with the credentials of an --object')
    .option('--no-tls-verify-peer', 'clients need no certificate')
    .option('--tls-authz <name>', 'only clients with this distinguished name; repeat for several', collect, [])
    .option('--progress <mode>', 'none, line, or json for a JSON line a second (default: line on a terminal)')
    .option('--size <size>', 'size of the temporary image when there is no IMAGE (default: 1G)')
    .addHelpText('after', SERVE_HELP)
    .action(async (images: string[], options: RawServeOptions) => {
      const { serve } = await import('./serve.ts');
      ended(await serve(images, options, early));
    });
}

/** The verbs for images that nobody has open. */
export function addImageVerbs(program: Command, ended: Ended): void {
  addCreate(program);
  addInfo(program);
  addCheck(program, ended);
  addSnapshot(program);
  addResize(program);
  addAmend(program);
  addCopy(program);
}

function addCopy(program: Command): void {
  program
    .command('copy')
    .description('copy a disk into another, whatever holds them')
    .argument('<SOURCE>', 'the image to copy')
    .argument('<DESTINATION>', 'where to: made when it is not there, else overwritten')
    .option('-f, --format <format>', `of the source: ${FORMAT}`)
    .option('-O, --output-format <format>', 'of the destination: raw or qcow2 (default: qcow2 for *.qcow2, else raw)')
    .option('-o, --options <name=value,...>', "options of a new destination; 'create -o help' lists them", collect)
    .option('--sparse <size>', 'leave out zeroes in units of this; 0 copies them as data (default: 4K)')
    .option('--speed <size>', 'bytes a second at most, such as 50M')
    .option('--cache <mode>', 'of the destination: writeback (default), none, writethrough, directsync or unsafe')
    .option('--references <which>', REFERENCES)
    .option('--allow-directory <path>', ALLOW, collect)
    .option('--key-file <path>', KEY_FILE)
    .option('--progress <mode>', 'none, line, or json for JSON lines (default: line on a terminal)')
    .addHelpText('after', COPY_HELP)
    .action(async (source: string, destination: string, options: RawCopyOptions) => {
      const { copy } = await import('./copy.ts');
      await copy(source, destination, options);
    });
}

const COPY_HELP = `
A destination that is there must be as large as the source; what it has beyond that stays. One that was made is
taken away again when the copy fails or is interrupted.

Examples:
  blockplane copy disk.qcow2 disk.raw
  blockplane copy -O qcow2 -o cluster_size=128k,compat=1.1 /dev/sdb backup.qcow2`;

export interface RawCopyOptions extends RawImageOptions {
  readonly outputFormat?: string;
  readonly options?: readonly string[];
  readonly sparse?: string;
  readonly speed?: string;
  readonly cache?: string;
  readonly progress?: string;
}

function addCreate(program: Command): void {
  program
    .command('create')
    .description('make a disk image')
    .argument('<FILE>', 'the new image')
    .argument('[SIZE]', 'size of the disk, such as 10G (default: as large as the backing file)')
    .option('-f, --format <format>', 'raw or qcow2 (default: qcow2 for *.qcow2, else raw)')
    .option('-o, --options <name=value,...>', 'options of the format; see below', collect)
    .option('-b, --backing <file>', 'the image below; a relative name begins at the new image')
    .option('-F, --backing-format <format>', 'format of the image below (default: qcow2 for *.qcow2)')
    .option('--key-file <path>', KEY_FILE)
    .option('--overwrite', 'overwrite a file that is there')
    .addHelpText('after', () => CREATE_HELP)
    .action(async (file: string, size: string | undefined, options: RawCreateOptions) => {
      const { create } = await import('./create.ts');
      await create(file, size, options);
    });
}

const CREATE_HELP = `
Options of qcow2 (-o): compat, cluster_size, preallocation, lazy_refcounts, refcount_bits, extended_l2,
compression_type, data_file, data_file_raw, backing_file, backing_fmt, encrypt.format; of raw: preallocation.
'-o help' says what they mean.

Examples:
  blockplane create disk.qcow2 10G
  blockplane create -o cluster_size=128k,extended_l2=on disk.qcow2 10G
  blockplane create -b base.img -F raw overlay.qcow2`;

export interface RawCreateOptions {
  readonly format?: string;
  readonly options?: readonly string[];
  readonly backing?: string;
  readonly backingFormat?: string;
  readonly keyFile?: string;
  readonly overwrite?: boolean;
}

function addInfo(program: Command): void {
  program
    .command('info')
    .description('say what an image says of itself; no other file is opened')
    .argument('<FILE>', 'the image')
    .option('-f, --format <format>', 'raw or qcow2 (default: what it looks like)')
    .option('--http-opts <options>', HTTP, collect)
    .option('--output <form>', 'human (default) or json')
    .action(async (file: string, options: RawInfoOptions) => {
      const { info } = await import('./info.ts');
      await info(file, options);
    });
}

export interface RawInfoOptions extends RawImageOptions {
  readonly output?: string;
}

function addCheck(program: Command, ended: Ended): void {
  program
    .command('check')
    .description('look for damage in an image, and repair it')
    .argument('<FILE>', 'the image')
    .option('-f, --format <format>', FORMAT)
    .option('-r, --repair <what>', 'leaks (give back what is lost) or all')
    .option('--http-opts <options>', HTTP, collect)
    .option('--output <form>', 'human (default) or json')
    .addHelpText('after', CHECK_HELP)
    .action(async (file: string, options: RawCheckOptions) => {
      const { check } = await import('./check.ts');
      ended(await check(file, options));
    });
}

const CHECK_HELP = `
Exit codes: 0 nothing is wrong (any more), 1 the check could not be completed, 2 the image is corrupt, 3 it has
leaked clusters and is fine otherwise, 63 its format has no checks.`;

export interface RawCheckOptions extends RawImageOptions {
  readonly repair?: string;
  readonly output?: string;
}

function addSnapshot(program: Command): void {
  program
    .command('snapshot')
    .description('list, make, apply and delete snapshots inside an image')
    .argument('<FILE>', 'the image')
    .option('-l, --list', 'list them (default)')
    .option('-c, --create <name>', 'make one')
    .option('-a, --apply <snapshot>', 'make the disk what it was (name or id)')
    .option('-d, --delete <snapshot>', 'delete one (name or id)')
    .option('-f, --format <format>', FORMAT)
    .option('--http-opts <options>', HTTP, collect)
    .option('--output <form>', 'of the list: human (default) or json')
    .option('--references <which>', REFERENCES)
    .option('--allow-directory <path>', ALLOW, collect)
    .option('--key-file <path>', KEY_FILE)
    .action(async (file: string, options: RawSnapshotOptions) => {
      const { snapshot } = await import('./snapshot.ts');
      await snapshot(file, options);
    });
}

export interface RawSnapshotOptions extends RawImageOptions {
  readonly list?: boolean;
  readonly create?: string;
  readonly apply?: string;
  readonly delete?: string;
  readonly output?: string;
}

function addResize(program: Command): void {
  program
    .command('resize')
    .description('change the size of the disk in an image')
    .argument('<FILE>', 'the image')
    .argument('<SIZE>', 'the new size, such as 10G, or a change: +1G, -1G (behind --)')
    .option('-f, --format <format>', FORMAT)
    .option('--shrink', 'the disk may become smaller: what is behind its new end is lost')
    .option('--preallocation <mode>', 'what is allocated of what is added: off (default), falloc or full')
    .option('--references <which>', REFERENCES)
    .option('--allow-directory <path>', ALLOW, collect)
    .option('--key-file <path>', KEY_FILE)
    .action(async (file: string, size: string, options: RawResizeOptions) => {
      const { resize } = await import('./resize.ts');
      await resize(file, size, options);
    });
}

export interface RawResizeOptions extends RawImageOptions {
  readonly shrink?: boolean;
  readonly preallocation?: string;
}

function addAmend(program: Command): void {
  program
    .command('amend')
    .description('change options of an image that is there')
    .argument('<FILE>', 'the image')
    .requiredOption('-o, --options <name=value,...>', 'what is to change; see below', collect)
    .option('-f, --format <format>', FORMAT)
    .option('--references <which>', REFERENCES)
    .option('--allow-directory <path>', ALLOW, collect)
    .option('--key-file <path>', KEY_FILE)
    .addHelpText('after', AMEND_HELP)
    .action(async (file: string, options: RawAmendOptions) => {
      const { amend } = await import('./amend.ts');
      await amend(file, options);
    });
}

const AMEND_HELP = `
Options (-o): compat=0.10|1.1, lazy_refcounts=on|off, refcount_bits=1..64, backing_file=NAME (empty: none),
backing_fmt=FORMAT. The backing file is named and not opened; its content is not looked at.`;

export interface RawAmendOptions extends RawImageOptions {
  readonly options: readonly string[];
}
