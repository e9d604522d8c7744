// A page that is not there: nothing to ask for, only the colours to choose.

import { startChrome } from "./chrome.js";
import { shown } from "./dom.js";

startChrome();
shown();
