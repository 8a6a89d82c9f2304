/**
 * Builds the folder that is served: bundles and minifies the scripts and the style, and adds the
 * licences of the bundled packages. `hatch_build.py` calls it; see docs/dashboard.md.
 *
 *     node clients/dashboard/bundle.mjs TARGET
 */

import { copyFile, mkdir, readFile, readdir, rm, writeFile } from "node:fs/promises";
import { join, resolve } from "node:path";
import { build } from "esbuild";

const HERE = import.meta.dirname;
const MODULES = join(HERE, "..", "..", "node_modules");
/** Licence texts for packages that name a licence but include no copy. */
const MIT = `Permission is hereby granted, free of charge, to any person obtaining a copy of this software and
associated documentation files (the "Software"), to deal in the Software without restriction,
including without limitation the rights to use, copy, modify, merge, publish, distribute, sublicense,
and/or sell copies of the Software, and to permit persons to whom the Software is furnished to do so,
subject to the following conditions:

The above copyright notice and this permission notice shall be included in all copies or substantial
portions of the Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT
LIMITED TO THE WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN
NO EVENT SHALL THE AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY,
WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE
SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
`;
const AS_THEY_ARE = ["index.html", "favicon.svg"];

const target = resolve(process.argv[2]);
await rm(target, { recursive: true, force: true });
await mkdir(target, { recursive: true });
const options = {
  absWorkingDir: HERE,
  outdir: target,
  bundle: true,
  format: "esm",
  target: "es2022",
  minify: true,
  legalComments: "none",
  metafile: true,
  logLevel: "warning",
};
// A self-contained file for other people's pages. Our page imports the same file.
const client = await build({ ...options, entryPoints: ["feed.js"] });
const page = await build({ ...options, entryPoints: ["page.js", "page.css"], external: ["./feed.js"] });
for (const name of AS_THEY_ARE) await copyFile(join(HERE, name), join(target, name));
await writeFile(join(target, "licences.txt"), await licences(packagesIn(client.metafile, page.metafile)));

/** The names of the packages that are part of the bundles. */
function packagesIn(...metafiles) {
  const name = /node_modules\/((?:@[^/]+\/)?[^/]+)\//;
  const paths = metafiles.flatMap(({ inputs }) => Object.keys(inputs));
  return [...new Set(paths.flatMap((path) => name.exec(path)?.[1] ?? []))].sort();
}

/** The copyright notice of each package, and its licence if the package includes one. */
async function licences(names) {
  const parts = names.map(async (name) => {
    const folder = join(MODULES, name);
    const { version, license, author } = JSON.parse(await readFile(join(folder, "package.json")));
    const file = (await readdir(folder)).find((each) => /^licen[cs]e/i.test(each));
    const text = file ? await readFile(join(folder, file), "utf8") : license === "MIT" ? MIT : "";
    const by = typeof author === "object" ? author.name : author;
    return `${name} ${version}, by ${by}\nLicence: ${license}\n\n${text}`;
  });
  const notice = "TradingView Lightweight Charts™\nCopyright (c) 2026 TradingView, Inc. https://www.tradingview.com/\n";
  return [notice, ...(await Promise.all(parts))].join(`\n${"-".repeat(72)}\n\n`);
}
