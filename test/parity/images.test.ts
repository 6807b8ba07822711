import { CHECK_LINES, MAP_LINES, RESIZE_LINES, SNAPSHOT_LINES } from './lines-images.ts';
import { paritySuite } from './suite.ts';

paritySuite({ check: CHECK_LINES, map: MAP_LINES, snapshot: SNAPSHOT_LINES, resize: RESIZE_LINES });
