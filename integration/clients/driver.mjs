// One official JavaScript client, driven by JSON lines: commands on stdin, what the client tells on stdout.
// Usage: node driver.mjs LIBRARY URL KEY [callback]. With callback it asks the application for its token. Knows the clients' public interfaces and nothing of the server.

import readline from 'node:readline'
import WebSocket from 'ws'

const [library, url, key, callback] = process.argv.slice(2)
let token = key
const accessToken = callback ? { accessToken: async () => token } : {}
const channels = new Map()

function tell(kind, channel, fields = {}) {
  process.stdout.write(JSON.stringify({ kind, channel, ...fields }) + '\n')
}

// Bytes in a form that JSON lines carry.
function shown(message) {
  return message.payload instanceof ArrayBuffer
    ? { ...message, payload: { bytes: [...new Uint8Array(message.payload)] } }
    : message
}

// supabase-js and realtime-js share one interface of channels.
function supabaseDriver(client) {
  return {
    join({ channel: name, config, bind }) {
      const channel = client.channel(name, { config: config ?? {} })
      channels.set(name, channel)
      for (const item of bind) {
        if (item.type === 'presence') {
          channel.on('presence', { event: 'sync' }, () => tell('presence', name, { state: channel.presenceState() }))
          for (const event of ['join', 'leave']) {
            channel.on('presence', { event }, ({ key }) => tell(event, name, { key }))
          }
        } else if (item.type === 'broadcast') {
          channel.on('broadcast', { event: item.event }, (message) => tell('broadcast', name, { message: shown(message) }))
        } else if (item.type === 'system') {
          channel.on('system', {}, (message) => tell('system', name, { message }))
        } else {
          channel.on('postgres_changes', item.filter, (change) => tell('change', name, { tag: item.tag, change }))
        }
      }
      channel.subscribe((status, error) => tell('status', name, { status, error: error?.message }))
    },
    async send({ channel, event, payload, bytes, persist }) {
      const content = bytes ? Uint8Array.from(bytes).buffer : payload
      const outcome = await channels
        .get(channel)
        .send({ type: 'broadcast', event, payload: content, ...(persist && { persist }) })
      tell('sent', channel, { outcome })
    },
    async post({ channel, event, payload }) {
      tell('posted', channel, { outcome: await channels.get(channel).httpSend(event, payload) })
    },
    async track({ channel, payload }) {
      tell('tracked', channel, { outcome: await channels.get(channel).track(payload) })
    },
    async untrack({ channel }) {
      tell('untracked', channel, { outcome: await channels.get(channel).untrack() })
    },
    async auth(command) {
      token = command.token
      await (client.realtime ?? client).setAuth(...(callback ? [] : [token]))
      tell('authorized', null)
    },
    async leave({ channel }) {
      tell('left', channel, { outcome: await client.removeChannel(channels.get(channel)) })
    },
  }
}

async function supabase(module) {
  const { createClient } = await import(module)
  const client = createClient(url, key, {
    realtime: { transport: WebSocket },
    auth: { persistSession: false, autoRefreshToken: false },
    ...accessToken,
  })
  return supabaseDriver(client)
}

async function realtime() {
  const { RealtimeClient } = await import('@supabase/realtime-js')
  const client = new RealtimeClient(url.replace(/^http/, 'ws') + '/realtime/v1', {
    params: { apikey: key },
    transport: WebSocket,
    ...accessToken,
  })
  return supabaseDriver(client)
}

// Phoenix's own client knows topics, events and payloads only.
async function phoenix() {
  const { Presence, Socket } = await import('phoenix')
  const socket = new Socket(url.replace(/^http/, 'ws') + '/socket', { params: { apikey: key }, transport: WebSocket })
  socket.connect()
  return {
    join({ channel: name, config, bind }) {
      const items = bind.filter((item) => item.type === 'postgres_changes').map((item) => item.filter)
      const channel = socket.channel('realtime:' + name, { config: { ...config, postgres_changes: items } })
      channels.set(name, channel)
      channel.on('postgres_changes', ({ ids, data }) => tell('change', name, { ids, change: data }))
      channel.on('system', (message) => tell('system', name, { message }))
      channel.on('broadcast', (message) => tell('broadcast', name, { message }))
      if (config?.presence?.enabled) {
        const presence = new Presence(channel)
        presence.onSync(() => tell('presence', name, { state: presence.state }))
        presence.onJoin((key) => tell('join', name, { key }))
        presence.onLeave((key) => tell('leave', name, { key }))
      }
      for (const event of ['INSERT', 'UPDATE', 'DELETE', 'TRUNCATE']) {
        channel.on(event, (change) => tell('change', name, { event, change }))
      }
      channel
        .join()
        .receive('ok', (response) => tell('status', name, { status: 'SUBSCRIBED', response }))
        .receive('error', (error) => tell('status', name, { status: 'CHANNEL_ERROR', error }))
    },
    send({ channel, event, payload }) {
      channels.get(channel).push('broadcast', { type: 'broadcast', event, payload })
      tell('sent', channel, { outcome: 'ok' })
    },
    track({ channel, payload }) {
      const push = channels.get(channel).push('presence', { type: 'presence', event: 'track', payload })
      push.receive('ok', () => tell('tracked', channel, { outcome: 'ok' }))
    },
    untrack({ channel }) {
      const push = channels.get(channel).push('presence', { type: 'presence', event: 'untrack' })
      push.receive('ok', () => tell('untracked', channel, { outcome: 'ok' }))
    },
    leave({ channel }) {
      channels.get(channel).leave().receive('ok', () => tell('left', channel, { outcome: 'ok' }))
    },
  }
}

const drivers = {
  'supabase-js': () => supabase('@supabase/supabase-js'),
  'supabase-js-node20': () => supabase('supabase-js-node20'),
  'supabase-js-vsn1': () => supabase('supabase-js-vsn1'),
  'realtime-js': realtime,
  phoenix,
}

const driver = await drivers[library]()
tell('ready', null, { library })
for await (const line of readline.createInterface({ input: process.stdin })) {
  const command = JSON.parse(line)
  // Not awaited: a client that waits for an answer must not keep the next command from it.
  Promise.resolve(driver[command.do](command)).catch((error) => tell('failed', command.channel, { error: String(error) }))
}
process.exit(0)
