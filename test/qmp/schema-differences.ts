/**
 * Where `query-qmp-schema` answers otherwise than that of qemu-storage-daemon 7.2, and why; in the form of
 * schema-compare.ts.
 */
export interface Reason {
  readonly why: string;
  readonly at: Readonly<Record<string, string>>;
}

export const DIFFERENCES: readonly Reason[] = [
  {
    why: 'Newer releases have them, and here they are.',
    at: {
      commands: '+block-job-change +blockdev-set-active +qom-list-get',
      'blockdev-add(copy-before-write)': '+min-cluster-size',
      'chardev-add.backend(pty).data': '+path',
      'chardev-add.backend(socket).data': '+reconnect-ms',
      'nbd-server-start': '+handshake-max-seconds',
      'block-export-add': '+allow-inactive',
      'blockdev-add': '+active',
    },
  },
  {
    why: 'There are no such objects, exports or jobs here (docs/COMPATIBILITY.md).',
    at: {
      'object-add.qom-type':
        '-authz-listfile -authz-pam -can-bus -can-host-socketcan -colo-compare -cryptodev-backend ' +
        '-cryptodev-backend-builtin -cryptodev-backend-lkcf -cryptodev-vhost-user -dbus-vmstate ' +
        '-filter-buffer -filter-dump -filter-mirror -filter-redirector -filter-replay -filter-rewriter ' +
        '-input-barrier -input-linux -memory-backend-epc -memory-backend-file -memory-backend-memfd ' +
        '-memory-backend-ram -pef-guest -pr-manager-helper -qtest -rng-builtin -rng-egd -rng-random ' +
        '-s390-pv-guest -secret_keyring -sev-guest -thread-context -tls-cipher-suites -x-remote-object ' +
        '-x-vfio-user-server +authz-list-file',
      'block-export-add.type': '-fuse -vduse-blk',
      'query-jobs ->[].type': '-snapshot-delete -snapshot-load -snapshot-save',
    },
  },
  {
    why: 'Drivers that are not here (docs/COMPATIBILITY.md, "Formats"), and one that they have not.',
    at: {
      'blockdev-add.driver':
        '-blklogwrites -blkreplay -bochs -cloop -dmg -gluster -host_cdrom -iscsi -luks -nfs -nvme -parallels ' +
        '-qcow -qed -quorum -rbd -replication -ssh -vdi -vhdx -vmdk -vpc -vvfat +virtio-blk-vhost-user',
    },
  },
  {
    why: 'Only what makes something is named; with the others they answer that they cannot.',
    at: {
      'blockdev-create.options.driver':
        '-blkdebug -blklogwrites -blkreplay -blkverify -bochs -cloop -compress -copy-before-write ' +
        '-copy-on-read -dmg -ftp -ftps -gluster -host_cdrom -host_device -http -https -iscsi -luks -nbd -nfs ' +
        '-null-aio -null-co -nvme -parallels -preallocate -qcow -qed -quorum -rbd -replication ' +
        '-snapshot-access -ssh -throttle -vdi -vhdx -vmdk -vpc -vvfat',
    },
  },
  {
    why: 'No type of the answer is needed to read it.',
    at: {
      'query-qmp-schema ->[]': 'value, there object',
      'query-block ->[].inserted.image.format-specific': 'value, there object',
      'query-blockstats ->[].stats.timed_stats[]': 'value, there object',
      'query-blockstats ->[].driver-specific': 'value, there object',
    },
  },
  {
    why: 'Devices of guests have them, and there are none; `active` is newer.',
    at: {
      'query-block ->[]': '-io-status -tray_open',
      'query-block ->[].inserted':
        '-bps_max -bps_max_length -bps_rd_max -bps_rd_max_length -bps_wr_max -bps_wr_max_length -iops_max ' +
        '-iops_max_length -iops_rd_max -iops_rd_max_length -iops_size -iops_wr_max -iops_wr_max_length ' +
        '+active',
      'query-blockstats ->[].stats': '-flush_latency_histogram -rd_latency_histogram -wr_latency_histogram',
    },
  },
  {
    why: 'Sockets of the kernel that are not used.',
    at: {
      'chardev-add.backend(socket).data.addr(inet).data': '-mptcp',
      'blockdev-add(nbd).server.type': '-fd -vsock',
      'block-export-add(vhost-user-blk).addr(inet)': '-mptcp',
    },
  },
  {
    why: 'They do nothing any more.',
    at: {
      'object-add(secret)': '-loaded',
      'object-add(tls-creds-anon)': '-loaded',
      'object-add(tls-creds-psk)': '-loaded',
      'object-add(tls-creds-x509)': '-loaded',
    },
  },
  {
    why: 'Options of this engine, besides theirs (docs/HTTP.md, docs/NBD-CLIENT.md, docs/QCOW2.md).',
    at: {
      'blockdev-add(file).aio': '+pool +ring',
      'blockdev-add(host_device).aio': '+pool +ring',
      'blockdev-add(http)':
        '+bearer-token +bearer-token-secret +cafile +connections +download +insecure-redirects +password ' +
        '+proxy +proxy-password +retries +sslverify',
      'blockdev-add(https)':
        '+bearer-token +bearer-token-secret +cafile +connections +download +insecure-redirects +password ' +
        '+proxy +proxy-password +retries',
      'blockdev-add(nbd)': '+connections +restart-loses-cache',
      'blockdev-add(nbd).server': '+abstract +host +path +port',
      'blockdev-add(qcow2)': '+bitmap-checkpoint +discard-no-unref +snapshot',
      'blockdev-add(qcow2).encrypt': '+key +key-secret',
      'blockdev-add(raw)': '+guessed',
    },
  },
  {
    why: 'What the engine decides by itself, and reservations of SCSI devices.',
    at: {
      'blockdev-add(file)': '-aio-max-batch -drop-cache -pr-manager -x-check-cache-dropped +fd +identity',
      'blockdev-add(host_device)': '-aio-max-batch -drop-cache -pr-manager -x-check-cache-dropped +fd +identity',
    },
  },
  {
    why: 'Names and passwords of proxies are in their URL.',
    at: {
      'blockdev-add(ftp)': '-proxy-password-secret -proxy-username +cafile +connections +password +retries +sslverify',
      'blockdev-add(ftps)': '-proxy-password-secret -proxy-username +cafile +connections +password +retries',
    },
  },
  {
    why: 'Groups of options are plain objects here; what they lack is refused by the driver.',
    at: {
      'blockdev-add(blkdebug).set-state[].new_state': 'optional, there required',
      'blockdev-add(copy-before-write).bitmap.node': 'optional, there required',
      'blockdev-add(copy-before-write).bitmap.name': 'optional, there required',
      'blockdev-add(nbd).server tag': 'none, there type',
      'blockdev-add(qcow2).encrypt.format': 'optional, there required',
      'blockdev-add(qcow2).encrypt tag': 'none, there format',
    },
  },
  {
    why: 'Credentials may be given as an object, too.',
    at: {
      'blockdev-add(nbd).tls-creds': 'alternate, there string',
    },
  },
  {
    why: 'Which structures are looked at cannot be chosen one by one.',
    at: {
      'blockdev-add(qcow2).overlap-check': 'enum, there alternate',
    },
  },
  {
    why: 'File systems that are not asked for it.',
    at: {
      'blockdev-create.options(file)': '-extent-size-hint -nocow',
    },
  },
  {
    why: 'docs/COMPATIBILITY.md, "qemu-storage-daemon"',
    at: {
      'blockdev-create.options(qcow2).encrypt':
        '+cipher-alg +cipher-mode +hash-alg +iter-time +ivgen-alg +ivgen-hash-alg +key +key-secret',
      'blockdev-create.options(qcow2).encrypt tag': 'none, there format',
      'blockdev-create.options(qcow2).encrypt.format': '-qcow +aes',
      'blockdev-create.options(qcow2).backing-fmt': 'string, there enum',
      'blockdev-create.options(raw)': '+file +preallocation +size',
      'x-blockdev-amend.options(qcow2)': '-encrypt +lazy-refcounts +refcount-bits +version',
    },
  },
];
