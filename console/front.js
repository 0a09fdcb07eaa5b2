"use strict";

// The front page keeps the session's token in memory alone: a reload logs out.
let token = "";

const texts = {
  en: {
    lead: "This server turns GPU machines behind NAT into one private cloud.",
    login: "Log in", email: "E-mail", password: "Password",
    hosts: "Hosts", name: "Name", status: "Status", system: "System",
    empty: "No host has joined yet.",
    add: "Add a host",
    addHow: "Make a line, and run it on the GPU machine. It needs outbound HTTPS and nothing else.",
    make: "Make the install line", copy: "Copy", copied: "Copied",
    once: "The line lets one host join within 24 hours. It is shown once.",
    next: "Then, on your own machine", api: "API document",
    unreachable: "The server does not answer. Try again in a moment.",
  },
  "zh-CN": {
    lead: "本服务器把位于 NAT 之后的 GPU 机器组成一个私有云。",
    login: "登录", email: "邮箱", password: "密码",
    hosts: "主机", name: "名称", status: "状态", system: "系统",
    empty: "还没有主机加入。",
    add: "添加主机",
    addHow: "生成一行命令，在 GPU 机器上运行。该机器只需能向外访问 HTTPS。",
    make: "生成安装命令", copy: "复制", copied: "已复制",
    once: "该命令在 24 小时内允许一台主机加入，只显示一次。",
    next: "然后，在你自己的电脑上", api: "API 文档",
    unreachable: "服务器没有响应，请稍后再试。",
  },
};

const byId = (id) => document.getElementById(id);
let language = navigator.language.startsWith("zh") ? "zh-CN" : "en";

function translate() {
  document.documentElement.lang = language;
  for (const el of document.querySelectorAll("[data-text]")) el.textContent = texts[language][el.dataset.text];
  const other = byId("language");
  other.textContent = language === "en" ? "中文" : "English";
  other.lang = language === "en" ? "zh-CN" : "en";
}

async function call(method, path, body) {
  const headers = body ? { "Content-Type": "application/json" } : {};
  if (token) headers.Authorization = "Bearer " + token;
  let answer;
  try {
    answer = await fetch("/api/v1" + path, { method, headers, body: body && JSON.stringify(body) });
  } catch {
    throw new Error(texts[language].unreachable);
  }
  const data = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Error(data.detail || answer.statusText);
  return data;
}

// act runs fn with its button off, and shows what went wrong.
async function act(button, fn) {
  byId("error").hidden = true;
  button.disabled = true;
  try {
    await fn();
  } catch (err) {
    byId("error").textContent = err.message;
    byId("error").hidden = false;
  } finally {
    button.disabled = false;
  }
}

function cell(text, className) {
  const td = document.createElement("td");
  td.textContent = text;
  if (className) td.className = className;
  return td;
}

async function refresh() {
  const { items } = await call("GET", "/hosts");
  byId("hosts").replaceChildren(...items.map((h) => {
    const tr = document.createElement("tr");
    const gpus = (h.gpus || []).map((g) => g.name);
    const counted = [...new Set(gpus)].map((n) => gpus.filter((g) => g === n).length + " × " + n).join(", ");
    tr.append(cell(h.name), cell(h.status, h.status === "online" ? "online" : "offline"), cell(counted || "–"), cell(h.os_version || h.os || ""));
    return tr;
  }));
  byId("empty").hidden = items.length > 0;
}

function steps() {
  const server = location.origin;
  byId("steps").textContent = `remotegpu login ${server}\nremotegpu key add\nremotegpu env create my-env --gpus 1\nremotegpu ssh my-env`;
}

byId("language").addEventListener("click", () => {
  language = language === "en" ? "zh-CN" : "en";
  translate();
});

byId("login").addEventListener("submit", (event) => {
  event.preventDefault();
  const form = event.target;
  act(form.querySelector("button"), async () => {
    const answer = await call("POST", "/login", { email: form.email.value, password: form.password.value });
    token = answer.token;
    form.hidden = true;
    form.reset();
    byId("fleet").hidden = false;
    steps();
    await refresh();
    setInterval(() => refresh().catch(() => {}), 5000);
  });
});

byId("join").addEventListener("click", (event) => act(event.target, async () => {
  const answer = await call("POST", "/join-tokens", { uses: 1, hours: 24 });
  byId("command").textContent = answer.command;
  byId("line").hidden = false;
}));

byId("copy").addEventListener("click", async (event) => {
  await navigator.clipboard.writeText(byId("command").textContent);
  event.target.textContent = texts[language].copied;
  setTimeout(translate, 1500);
});

translate();
