import { AMEND_LINES, BITMAP_LINES, MEASURE_LINES } from './lines-changes.ts';
import { paritySuite } from './suite.ts';

paritySuite({ amend: AMEND_LINES, bitmap: BITMAP_LINES, measure: MEASURE_LINES });
