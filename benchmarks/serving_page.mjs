// Drives the page of `alignvl serve` in headless Chromium as a person would, at two widths, light and dark: page loaded, a text
// searched, a picture dropped, a result followed, keys, history, threshold. Fails on a console error, on anything loaded from
// elsewhere, and on a serious finding of axe-core; leaves screenshots.
//
//   npm install playwright-core axe-core      (in any folder; and a Chromium, such as apt's)
//   node benchmarks/serving_page.mjs http://127.0.0.1:8000/ photo.png shots/ [/usr/bin/chromium]
import {createRequire} from "node:module";
import {mkdirSync, readFileSync} from "node:fs";

const require = createRequire(process.cwd() + "/");
const {chromium} = require("playwright-core");
const axe = readFileSync(require.resolve("axe-core/axe.min.js"), "utf8");
const [url, photo, shots, executablePath = "/usr/bin/chromium"] = process.argv.slice(2);
const SIZES = {desktop: {width: 1280, height: 860}, phone: {width: 390, height: 844}};
const problems = [];
let checks = 0;
const check = (holds, what) => { checks += 1; if (!holds) problems.push(what); };

async function audit(page, where) {
  await page.evaluate(axe);  // in the page's own world a policy would refuse it as a script
  const {violations} = await page.evaluate(() => axe.run());
  for (const one of violations) {
    const line = `${where}: axe ${one.impact}: ${one.id} (${one.nodes.length}): ${one.nodes[0].html.slice(0, 120)}`;
    if (["serious", "critical"].includes(one.impact)) problems.push(line);
    else console.log(line);
  }
  checks += 1;
}

async function drop(page, path) {
  const data = await page.evaluateHandle(async ([bytes]) => {
    const transfer = new DataTransfer();
    transfer.items.add(new File([new Uint8Array(bytes)], "photo.png", {type: "image/png"}));
    return transfer;
  }, [[...readFileSync(path)]]);
  await page.dispatchEvent("body", "dragover", {dataTransfer: data});
  check(await page.isVisible("#drop"), "the place to drop is not shown");
  await page.dispatchEvent("body", "drop", {dataTransfer: data});
}

const found = page => page.waitForFunction(() => document.querySelector("#results li") && !document.querySelector("#results.busy"));
const pictures = page => page.waitForFunction(() => [...document.querySelectorAll("#results img")].filter(i => i.getBoundingClientRect().top < innerHeight).every(i => i.complete && i.naturalWidth));

async function walk(browser, size, scheme) {
  const name = `${size}-${scheme}`;
  const context = await browser.newContext({viewport: SIZES[size], colorScheme: scheme, hasTouch: size === "phone"});
  const page = await context.newPage();
  page.on("console", message => { if (["error", "warning"].includes(message.type())) problems.push(`${name}: console: ${message.text()}`); });
  page.on("pageerror", problem => problems.push(`${name}: page: ${problem}`));
  page.on("request", request => { if (!request.url().startsWith(url) && !/^(data|blob):/.test(request.url())) problems.push(`${name}: loads ${request.url()}`); });
  const shot = what => page.screenshot({path: `${shots}/${name}-${what}.png`});

  await page.goto(url);
  await page.waitForFunction(() => document.querySelector("#facts dd"));
  await shot("1-start");
  await audit(page, `${name} start`);

  await page.keyboard.press("/");
  await page.keyboard.type("red heart");
  await page.keyboard.press("Enter");
  await found(page);
  await pictures(page);
  check(/pictures by .*cosine/.test(await page.textContent("#status")), `${name}: status after a text`);
  check(await page.evaluate(() => document.documentElement.scrollWidth <= innerWidth), `${name}: wider than the window`);
  await shot("2-text");
  await audit(page, `${name} text`);

  await page.focus("#results .picture");
  const first = await page.evaluate(() => document.activeElement.dataset.id);
  await page.keyboard.press("ArrowRight");
  check(await page.evaluate(() => document.activeElement.dataset.id) !== first, `${name}: arrow keys`);
  await page.keyboard.press("Enter");
  await page.waitForSelector("#item[open]");
  await page.waitForFunction(() => document.querySelector("#item-picture").naturalWidth);
  await shot("3-item");
  await audit(page, `${name} item`);
  await page.keyboard.press("Escape");
  check(!await page.isVisible("#item"), `${name}: Escape closes the item`);

  await page.click("#results li:nth-child(2) .like");
  await page.waitForFunction(() => document.querySelector("#by-name").textContent && !document.querySelector("#results.busy"));
  await found(page);
  await pictures(page);
  check((await page.evaluate(() => location.hash)).startsWith("#like="), `${name}: address of a followed result`);
  await shot("4-followed");
  await audit(page, `${name} followed`);
  await page.goBack();
  await page.waitForFunction(() => document.querySelector("#text").value === "red heart");
  check(await page.inputValue("#text") === "red heart", `${name}: Back`);
  await page.goForward();

  await drop(page, photo);
  await page.waitForFunction(() => document.querySelector("#by-name").textContent === "photo.png" && !document.querySelector("#results.busy"));
  await found(page);
  await pictures(page);
  await shot("5-dropped");
  await page.fill("#text", "heart");
  await page.press("#text", "Enter");
  await page.waitForTimeout(100);
  await found(page);
  await pictures(page);
  check(await page.isVisible("#by"), `${name}: a picture and words together`);
  await shot("5b-combined");
  await page.fill("#text", "");
  await page.click("fieldset label:nth-of-type(2) span");
  await page.waitForSelector("#results.text li");
  await pictures(page);
  await shot("6-captions");
  await audit(page, `${name} captions`);

  await page.click("#by-remove");
  await page.fill("#text", "<img src=x onerror=alert(1)>");
  await page.evaluate(() => { document.querySelector("#least").value = 1; document.querySelector("#least").dispatchEvent(new Event("change")); });
  await page.waitForFunction(() => /scores 1.00 or more/.test(document.querySelector("#status").textContent));
  await shot("7-nothing");
  await page.click("#about summary");
  await shot("8-about");
  await audit(page, `${name} about`);

  await page.goto(url + "docs");
  await shot("9-api");
  check(await page.evaluate(() => document.documentElement.scrollWidth <= innerWidth), `${name}: API page wider than the window`);
  await audit(page, `${name} API`);
  await context.close();
}

mkdirSync(shots, {recursive: true});
const browser = await chromium.launch({executablePath, args: ["--no-sandbox"]});
for (const size of Object.keys(SIZES)) for (const scheme of ["light", "dark"]) await walk(browser, size, scheme);
await browser.close();
console.log(...problems.map(line => `${line}\n`), `${checks} checks, ${problems.length} problems`);
process.exit(problems.length ? 1 : 0);
