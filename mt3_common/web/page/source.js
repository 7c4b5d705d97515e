// The source of this page: the program that serves it. `mt3 site` writes this file anew, with the network in the browser.

export * from "./server.js";
