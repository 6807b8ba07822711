import { CREATE_LINES } from './lines-create.ts';
import { INFO_LINES, USAGE_LINES } from './lines-usage.ts';
import { paritySuite } from './suite.ts';

paritySuite({ 'bad usage': USAGE_LINES, info: INFO_LINES, create: CREATE_LINES });
