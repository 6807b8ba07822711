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
    ],
  },
  true,
);
