import { paritySuite } from './suite.ts';

paritySuite(
  {
    'as a process': [
      '',
      'info nofile',
      'info --output=json snap.qcow2',
      'info --backing-chain top.qcow2',
      'create -f qcow2 x 1M',
      'check empty.qcow2',
      'map --output=json top.qcow2',
      'snapshot -l snap.qcow2',
      'resize empty.qcow2 2M',
      'measure --size 1G -O qcow2',
      'measure -O qcow2 top.qcow2',
      // A process of its own knows no driver that another line has loaded.
      'convert -O qcow2 top.qcow2 x',
      'convert -c -O qcow2 sub.qcow2 x',
      'compare ov.qcow2 top.qcow2',
      'commit -q ov.qcow2',
      'commit -b base.raw top.qcow2',
      'rebase -b base.raw -F raw top.qcow2',
      'rebase -u -b ov.qcow2 -F qcow2 top.qcow2',
      'dd if=top.qcow2 of=x bs=1k count=100',
      'amend -o lazy_refcounts=on data.qcow2',
      'bitmap --add top.qcow2 b',
      'bitmap --merge b0 -b bits.qcow2 -F qcow2 bits.qcow2 b1',
    ],
  },
  true,
);
