import { packageVersion } from '../version.ts';

export function versionText(name: string): string {
  return `${name} version ${packageVersion()} (blockplane)\n`;
}

export function helpText(name: string): string {
  return `Usage: ${name} [options]
A storage daemon: disk images as nodes, and their exports, driven by QMP

Options take effect in their order. Values are KEY=VALUE,... or JSON.

  -h, --help             show this help and exit
  -V, --version          show the version and exit
  -T, --trace SPEC       there are no trace events to switch on

  --blockdev DRIVER[,node-name=N][,read-only=on|off][,auto-read-only=on|off]
             [,force-share=on|off][,discard=ignore|unmap]
             [,detect-zeroes=on|off|unmap][,cache.direct=on|off]
             [,cache.no-flush=on|off][,OPTION OF THE DRIVER...]
                         add a node

  --chardev TYPE,id=ID[,OPTION...]
                         add a character device: socket, pty, udp, stdio, file,
                         pipe, serial, parallel, null, ringbuf, mux; with
                         mux=on several monitors can have it

  --export nbd,id=ID,node-name=N[,name=NAME][,writable=on|off]
           [,bitmaps.0=BITMAP...][,iothread=ID][,fixed-iothread=on|off]
                         show a node over NBD (needs --nbd-server)
  --export vhost-user-blk,id=ID,node-name=N,addr.type=unix,addr.path=PATH
           [,writable=on|off][,logical-block-size=BYTES][,num-queues=COUNT]
                         show a node to a virtual machine

  --monitor CHARDEV[,pretty=on|off]
                         a QMP monitor on a character device

  --nbd-server addr.type=inet,addr.host=HOST,addr.port=PORT[,addr.to=PORT]
               [,addr.ipv4=on|off][,addr.ipv6=on|off]
  --nbd-server addr.type=unix,addr.path=PATH
               [,addr.abstract=on|off][,addr.tight=on|off]
  --nbd-server addr.type=fd,addr.str=FD
               [,max-connections=COUNT][,handshake-max-seconds=SECONDS]
               [,tls-creds=ID][,tls-authz=ID]
                         an NBD server; there may be several

  --object TYPE,id=ID[,PROPERTY=VALUE...]
                         add an object; '--object help' lists the types

  --pidfile PATH         write the process's id there once all is ready
  --daemonize            go on in the background once all is ready
`;
}
