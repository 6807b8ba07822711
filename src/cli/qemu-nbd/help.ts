/** What `--help` prints. */
export const HELP = `Usage: qemu-nbd [OPTIONS] FILE
  or:  qemu-nbd -L [OPTIONS]
The NBD server of QEMU, by blockplane: FILE as an NBD export, or a list of the exports of another server

  -h, --help                show this and exit
  -V, --version             show the version and exit

Where and for whom:
  -p, --port=PORT           TCP port (10809)
  -b, --bind=ADDRESS        address or name of the interface (0.0.0.0)
  -k, --socket=PATH         a unix socket instead; an absolute path
  -e, --shared=NUM          clients at a time (1); 0 for any number
  -t, --persistent          go on when the last client has left
  -x, --export-name=NAME    name of the export (empty)
  -D, --description=TEXT    what the export says of itself
      --handshake-limit=S   seconds that a client has for its handshake (10); 0 for no limit
  -v, --verbose             accepted, and of no effect

What of the image:
  -o, --offset=BYTES        the image from here on
  -A, --allocation-depth    offer qemu:allocation-depth
  -B, --bitmap=NAME         offer this dirty bitmap; repeat for several

The program:
  -L, --list                list the exports of a server and exit
      --object TYPE,id=ID   an object that options name by its id, as in secret,id=sec0,file=PATH
      --tls-creds=ID        use TLS with these credentials
      --tls-authz=ID        whom of those that have a certificate to serve
      --tls-hostname=NAME   with --list: whose certificate the server has to have
      --fork                return when clients can connect, and go on in the background
      --pid-file=PATH       a file with the number of the process
  -T, --trace=...           accepted, and of no effect
      --selinux-label=LABEL not supported

The image:
  -f, --format=FORMAT       raw, qcow2, ... (what its first bytes say)
  -r, --read-only           refuse writes
  -s, --snapshot            keep what is written in a temporary file
  -l, --load-snapshot=WHICH an internal snapshot, read-only: snapshot.id=ID, snapshot.name=NAME, or either of them
  -n, --nocache             as --cache=none
      --cache=MODE          none, writeback (default), writethrough, directsync or unsafe
      --aio=MODE            threads, native or io_uring (io_uring where the system allows it)
      --discard=MODE        ignore (default) or unmap
      --detect-zeroes=MODE  off (default), on or unmap
      --image-opts          FILE is a set of options, driver=qcow2,file.filename=disk.qcow2

Devices of the kernel (-c, --connect and -d, --disconnect) are not supported: nbd-client(8) connects them to the server.
`;
