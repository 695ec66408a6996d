import { createClient } from '@supabase/supabase-js'

const supabase = createClient('http://127.0.0.1:3100', process.env.ANON_TOKEN)
supabase
  .channel('todos')
  .on('postgres_changes', { event: '*', schema: 'public', table: 'todos' }, (change) => {
    console.log(change.eventType, change.new, change.old)
  })
  .subscribe((status) => console.log(status))
