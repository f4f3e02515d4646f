//! Chat templates in the style of well-known models, rendered as `transformers` renders them.
//!
//! The expected texts are what `render_jinja_template` of transformers 4.57.6 (jinja2 3.1.6) gives,
//! with the date 2024-07-26 and the special tokens of [`compile`].

use super::*;

const LLAMA_2: &str = r##"{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}{% set system_message = false %}{% endif %}{% for message in loop_messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}{% if loop.index0 == 0 and system_message != false %}{% set content = '<<SYS>>\n' + system_message + '\n<</SYS>>\n\n' + message['content'] %}{% else %}{% set content = message['content'] %}{% endif %}{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}{% elif message['role'] == 'assistant' %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"##;

const LLAMA_3: &str = r##"{{- bos_token }}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "26 Jul 2024" %}
    {%- endif %}
{%- endif %}
{%- if not tools is defined %}
    {%- set tools = none %}
{%- endif %}

{#- The system turn is always there, so that it can hold the date. #}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\n\n" }}
{%- if tools is not none %}
    {{- "Environment: ipython\n" }}
{%- endif %}
{{- "Cutting Knowledge Date: December 2023\n" }}
{{- "Today Date: " + date_string + "\n\n" }}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls|length == 1 %}
            {{- raise_exception("This model only supports single tool-calls at once!") }}
        {%- endif %}
        {{- message.tool_calls[0].function.arguments | tojson }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
{%- endif %}
"##;

const MISTRAL: &str = r##"{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{%- set user_messages = loop_messages | selectattr("role", "equalto", "user") | list %}

{#- Checks for alternating roles. #}
{%- set ns = namespace() %}
{%- set ns.index = 0 %}
{%- for message in loop_messages %}
    {%- if not (message.role == "tool" or (message.tool_calls is defined and message.tool_calls is not none)) %}
        {%- if (message["role"] == "user") != (ns.index % 2 == 0) %}
            {{- raise_exception("After the optional system message, conversation roles must alternate user/assistant/user/assistant/...") }}
        {%- endif %}
        {%- set ns.index = ns.index + 1 %}
    {%- endif %}
{%- endfor %}

{{- bos_token }}
{%- for message in loop_messages %}
    {%- if message["role"] == "user" %}
        {%- if tools is not none and (message == user_messages[-1]) %}
            {{- "[AVAILABLE_TOOLS] [" }}{{- tools | tojson }}{{- "[/AVAILABLE_TOOLS]" }}
        {%- endif %}
        {%- if loop.last and system_message is defined %}
            {{- "[INST] " + system_message + "\n\n" + message["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST] " + message["content"] + "[/INST]" }}
        {%- endif %}
    {%- elif message["role"] == "assistant" %}
        {{- " " + message["content"]|trim + eos_token}}
    {%- else %}
        {{- raise_exception("Only user and assistant roles are supported, with the exception of an initial optional system message!") }}
    {%- endif %}
{%- endfor %}
"##;

const GEMMA: &str = r##"{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}{% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}{% set role = message['role'] %}{% endif %}{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}"##;

const GEMMA_3: &str = r##"{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- if messages[0]['content'] is string -%}
        {%- set first_user_prefix = messages[0]['content'] + '\n\n' -%}
    {%- else -%}
        {%- set first_user_prefix = messages[0]['content'][0]['text'] + '\n\n' -%}
    {%- endif -%}
    {%- set loop_messages = messages[1:] -%}
{%- else -%}
    {%- set first_user_prefix = "" -%}
    {%- set loop_messages = messages -%}
{%- endif -%}
{%- for message in loop_messages -%}
    {%- if (message['role'] == 'assistant') -%}
        {%- set role = "model" -%}
    {%- else -%}
        {%- set role = message['role'] -%}
    {%- endif -%}
    {{ '<start_of_turn>' + role + '\n' + (first_user_prefix if loop.first else "") }}
    {%- if message['content'] is string -%}
        {{ message['content'] | trim }}
    {%- elif message['content'] is iterable -%}
        {%- for item in message['content'] -%}
            {{ item['text'] | trim }}
        {%- endfor -%}
    {%- else -%}
        {{ raise_exception("Invalid content type") }}
    {%- endif -%}
    {{ '<end_of_turn>\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{'<start_of_turn>model\n'}}
{%- endif -%}
"##;

const PHI_3: &str = r##"{% for message in messages %}{% if message['role'] == 'system' %}{{'<|system|>\n' + message['content'] + '<|end|>\n'}}{% elif message['role'] == 'user' %}{{'<|user|>\n' + message['content'] + '<|end|>\n'}}{% elif message['role'] == 'assistant' %}{{'<|assistant|>\n' + message['content'] + '<|end|>\n'}}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"##;

const QWEN_2_5: &str = r##"{%- if tools %}
    {{- '<|im_start|>system\n' }}
    {%- if messages[0]['role'] == 'system' %}
        {{- messages[0]['content'] }}
    {%- endif %}
    {%- for tool in tools %}
        {{- "\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "<|im_end|>\n" }}
{%- else %}
    {%- if messages[0]['role'] == 'system' %}
        {{- '<|im_start|>system\n' + messages[0]['content'] + '<|im_end|>\n' }}
    {%- else %}
        {{- '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}
    {%- endif %}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) or (message.role == "assistant" and not message.tool_calls) %}
        {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' }}
    {%- elif message.role == "assistant" %}
        {{- '<|im_start|>' + message.role }}
        {%- for tool_call in message.tool_calls %}
            {{- tool_call.arguments | tojson }}
        {%- endfor %}
        {{- '<|im_end|>\n' }}
    {%- elif message.role == "tool" %}
        {%- if (loop.index0 == 0) or (messages[loop.index0 - 1].role != "tool") %}
            {{- '<|im_start|>user' }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
{%- endif %}
"##;

const QWEN_3: &str = r##"{%- if messages[0].role == 'system' %}
    {{- '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}
{%- endif %}
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string and not(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.content is string %}
        {%- set content = message.content %}
    {%- else %}
        {%- set content = '' %}
    {%- endif %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\n' + content + '<|im_end|>' + '\n' }}
    {%- elif message.role == "assistant" %}
        {%- set reasoning_content = '' %}
        {%- if message.reasoning_content is string %}
            {%- set reasoning_content = message.reasoning_content %}
        {%- else %}
            {%- if '</think>' in content %}
                {%- set reasoning_content = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}
                {%- set content = content.split('</think>')[-1].lstrip('\n') %}
            {%- endif %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query_index %}
            {%- if loop.last or (not loop.last and reasoning_content) %}
                {{- '<|im_start|>' + message.role + '\n<think>\n' + reasoning_content.strip('\n') + '\n</think>\n\n' + content.lstrip('\n') }}
            {%- else %}
                {{- '<|im_start|>' + message.role + '\n' + content }}
            {%- endif %}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\n' + content }}
        {%- endif %}
        {{- '<|im_end|>\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\n\n</think>\n\n' }}
    {%- endif %}
{%- endif %}"##;

const CHATML: &str = r##"{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"##;

const ZEPHYR: &str = r##"{% for message in messages %}
{% if message['role'] == 'user' %}
{{ '<|user|>\n' + message['content'] + eos_token }}
{% elif message['role'] == 'system' %}
{{ '<|system|>\n' + message['content'] + eos_token }}
{% elif message['role'] == 'assistant' %}
{{ '<|assistant|>\n'  + message['content'] + eos_token }}
{% endif %}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}"##;

const SMOLLM: &str = r##"{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system
You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>
' }}{% endif %}{{'<|im_start|>' + message['role'] + '
' + message['content'] + '<|im_end|>' + '
'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant
' }}{% endif %}"##;

const DEEPSEEK: &str = r##"{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}{% set ns = namespace(is_first=false, is_tool=false, is_output_first=true, system_prompt='') %}{%- for message in messages %}{%- if message['role'] == 'system' %}{% set ns.system_prompt = message['content'] %}{%- endif %}{%- endfor %}{{bos_token}}{{ns.system_prompt}}{%- for message in messages %}{%- if message['role'] == 'user' %}{%- set ns.is_tool = false -%}{{'<｜User｜>' + message['content']}}{%- endif %}{%- if message['role'] == 'assistant' and message['content'] is not none %}{%- if ns.is_tool %}{{'<｜tool▁outputs▁end｜>' + message['content'] + '<｜end▁of▁sentence｜>'}}{%- set ns.is_tool = false -%}{%- else %}{% set content = message['content'] %}{% if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}{{'<｜Assistant｜>' + content + '<｜end▁of▁sentence｜>'}}{%- endif %}{%- endif %}{%- endfor -%}{% if ns.is_tool %}{{'<｜tool▁outputs▁end｜>'}}{% endif %}{% if add_generation_prompt and not ns.is_tool %}{{'<｜Assistant｜><think>\n'}}{% endif %}"##;

const OLMO: &str = r##"{{ bos_token }}{% for message in messages %}{% if message['role'] == 'system' %}{{ '<|system|>\n' + message['content'] + '\n' }}{% elif message['role'] == 'user' %}{{ '<|user|>\n' + message['content'] + '\n' }}{% elif message['role'] == 'assistant' %}{% if not loop.last %}{{ '<|assistant|>\n'  + message['content'] + eos_token + '\n' }}{% else %}{{ '<|assistant|>\n'  + message['content'] + eos_token }}{% endif %}{% endif %}{% if loop.last and add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}{% endfor %}"##;

const GRANITE: &str = r##"{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set system_message = "Knowledge Cutoff Date: April 2024.\nToday's Date: " + strftime_now('%B %d, %Y') + ".\nYou are Granite, developed by IBM." %}
    {%- if tools and documents %}
        {%- set system_message = system_message + " You have tools and documents." %}
    {%- elif thinking %}
        {%- set system_message = system_message + " You are a helpful AI assistant.\nRespond to every user query in a comprehensive and detailed way. Write your thoughts after 'Here is my thought process:' for each user query." %}
    {%- else %}
        {%- set system_message = system_message + " You are a helpful AI assistant." %}
    {%- endif %}
    {%- set loop_messages = messages %}
{%- endif %}
{{- '<|start_of_role|>system<|end_of_role|>' + system_message + '<|end_of_text|>\n' }}
{%- for message in loop_messages %}
    {{- '<|start_of_role|>' + message['role'] + '<|end_of_role|>' + message['content'] + '<|end_of_text|>\n' }}
    {%- if loop.last and add_generation_prompt %}
        {{- '<|start_of_role|>assistant' }}
            {%- if controls %}
                {{- ' ' + controls | tojson()}}
            {%- endif %}
        {{- '<|end_of_role|>' }}
    {%- endif %}
{%- endfor %}"##;

const COHERE: &str = r##"{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% set system_message = messages[0]['content'] %}{% elif false == true %}{% set loop_messages = messages %}{% set system_message = 'You are Command-R.' %}{% else %}{% set loop_messages = messages %}{% set system_message = false %}{% endif %}{% if system_message != false %}{{ '<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>' + system_message + '<|END_OF_TURN_TOKEN|>' }}{% endif %}{% for message in loop_messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}{% set content = message['content'] %}{% if message['role'] == 'user' %}{{ '<|START_OF_TURN_TOKEN|><|USER_TOKEN|>' + content.strip() + '<|END_OF_TURN_TOKEN|>' }}{% elif message['role'] == 'assistant' %}{{ '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>'  + content.strip() + '<|END_OF_TURN_TOKEN|>' }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>' }}{% endif %}"##;

const GPT_OSS: &str = r##"{#- Macros. #}
{%- macro render_type(spec, required, depth=0) -%}
    {%- if spec.type == "array" -%}
        {{- render_type(spec['items'], required, depth + 1) }}[]
    {%- else -%}
        {{- spec.type }}
    {%- endif -%}
{%- endmacro -%}

{%- macro build_system_message() -%}
    {%- if model_identity is not defined %}
        {%- set model_identity = "You are ChatGPT, a large language model trained by OpenAI." %}
    {%- endif %}
    {{- model_identity + "\n" }}
    {{- "Knowledge cutoff: 2024-06\n" }}
    {{- "Current date: " + strftime_now("%Y-%m-%d") + "\n\n" }}
    {%- if reasoning_effort is not defined %}
        {%- set reasoning_effort = "medium" %}
    {%- endif %}
    {{- "Reasoning: " + reasoning_effort + "\n\n" }}
    {{- "# Valid channels: analysis, commentary, final. Channel must be included for every message." }}
{%- endmacro -%}

{{- "<|start|>system<|message|>" }}
{{- build_system_message() }}
{{- "<|end|>" }}
{%- if messages[0].role == "developer" or messages[0].role == "system" %}
    {%- set developer_message = messages[0].content %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set developer_message = "" %}
    {%- set loop_messages = messages %}
{%- endif %}
{%- if developer_message or tools %}
    {{- "<|start|>developer<|message|>" }}
    {{- "# Instructions\n\n" }}
    {{- developer_message }}
    {{- "\n\n" }}
    {{- "<|end|>" }}
{%- endif %}
{%- set last_tool_call = namespace(name=none) %}
{%- for message in loop_messages -%}
    {%- if message.role == 'assistant' -%}
        {%- if loop.last and not add_generation_prompt %}
            {{- "<|start|>assistant<|channel|>final<|message|>" + message.content + "<|return|>" }}
        {%- else %}
            {{- "<|start|>assistant<|channel|>final<|message|>" + message.content + "<|end|>" }}
            {%- set last_tool_call.name = none %}
        {%- endif %}
    {%- elif message.role == 'user' -%}
        {{- "<|start|>user<|message|>" + message.content + "<|end|>" }}
    {%- endif -%}
{%- endfor -%}
{{- render_type({'type': 'array', 'items': {'type': 'array', 'items': {'type': 'x'}}}, none) }}
{%- if add_generation_prompt -%}
<|start|>assistant
{%- endif -%}"##;

const GENERATION: &str = r##"{% for m in messages %}
{% if m.role == 'assistant' %}
{%- generation -%}
{{ m.content }}{{ eos_token }}
{% endgeneration %}
{% else %}
{{ m.role | capitalize }}: {{ m['content'] }}
{% endif %}
{% endfor %}
{{ '### Response:' if add_generation_prompt }}

"##;

const WHITESPACE: &str =
    "\t{% set x = 'a' %}\r\n  {{ x }}\r\n  {%+ if true +%}\r\n  {{- x -}}\r\n{% endif %}{# note #}\r\n\r\nend\r\n";

const PYTHON: &str = r##"{% set c = messages[-1].content %}
{{ c.split()[0] }} {{ c.rsplit(' ', 1)[-1] }} {{ c[1:4] }} {{ c[::-1] }} {{ '-' * 5 }}
{{ c.partition('o')[2] }} {{ 'abc'.removeprefix('a').removesuffix('c') }} {{ 'a\nb\r\nc'.splitlines()|join('+') }}
{{ c.upper().find('N') }} {{ c.title() }} {{ '7'.zfill(3) }} {{ 'x'.center(4, '*') }} {{ [1, 2].index(2) }}
{{ messages | tojson }}
{{ {'b': [1, {}], 'a': '<é>&\''} | tojson(indent=2, sort_keys=true) }}
{{ {'k': [1.5, none, true]} | tojson(separators=(',', ':'), ensure_ascii=true) }}
{% for k, v in messages[0].items() %}{{ loop.index0 }}{{ k }}={{ v|length }}{{ ', ' if not loop.last }}{% endfor %}

{{ undefined_name }}{{ undefined_name is defined }}{{ tools is none }}{{ None }}{{ True }}{{ [none, 'a', 1.0] }}
{{ 'abc' is iterable }}{{ none is iterable }}{{ {} is sequence }}{{ strftime_now is callable }}
{{ bos_token ~ 1 ~ none }}{{ pad_token + unk_token }}{{ sep_token is defined }}
{% for i in range(9) %}{% if i == 1 %}{% continue %}{% elif i > 3 %}{% break %}{% endif %}{{ i }}{% endfor %}"##;

/// Template, turns, `enable_thinking`, `add_generation_prompt`, and the text or what the template
/// raises.
type Case =
    (&'static str, &'static [(&'static str, &'static str)], Option<bool>, bool, Result<&'static str, &'static str>);

const USER: (&str, &str) = ("user", " How do I kill a Python process? \"now\" <b>é ");
const SYSTEM: (&str, &str) = ("system", "Be brief.\n");
const ASSISTANT: (&str, &str) = ("assistant", "<think>\nhm\n</think>\n\nUse kill.");
const THANKS: (&str, &str) = ("user", "Thanks");

const CASES: &[Case] = &[
    (LLAMA_2, &[USER], None, true, Ok("<s>[INST] How do I kill a Python process? \"now\" <b>é [/INST]")),
    (
        LLAMA_2,
        &[SYSTEM, USER],
        None,
        true,
        Ok("<s>[INST] <<SYS>>\nBe brief.\n\n<</SYS>>\n\n How do I kill a Python process? \"now\" <b>é [/INST]"),
    ),
    (
        LLAMA_2,
        &[USER, ASSISTANT, THANKS],
        None,
        true,
        Ok(
            "<s>[INST] How do I kill a Python process? \"now\" <b>é [/INST] <think>\nhm\n</think>\n\nUse kill. </s><s>[INST] Thanks [/INST]",
        ),
    ),
    (
        LLAMA_3,
        &[USER],
        None,
        true,
        Ok(
            "<s><|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nHow do I kill a Python process? \"now\" <b>é<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
        ),
    ),
    (
        LLAMA_3,
        &[SYSTEM, USER],
        None,
        true,
        Ok(
            "<s><|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\nBe brief.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nHow do I kill a Python process? \"now\" <b>é<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
        ),
    ),
    (
        LLAMA_3,
        &[USER, ASSISTANT, THANKS],
        None,
        true,
        Ok(
            "<s><|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nHow do I kill a Python process? \"now\" <b>é<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n<think>\nhm\n</think>\n\nUse kill.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nThanks<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
        ),
    ),
    (MISTRAL, &[USER], None, true, Ok("<s>[INST]  How do I kill a Python process? \"now\" <b>é [/INST]")),
    (
        MISTRAL,
        &[SYSTEM, USER],
        None,
        true,
        Ok("<s>[INST] Be brief.\n\n\n How do I kill a Python process? \"now\" <b>é [/INST]"),
    ),
    (
        MISTRAL,
        &[USER, ASSISTANT, THANKS],
        None,
        true,
        Ok(
            "<s>[INST]  How do I kill a Python process? \"now\" <b>é [/INST] <think>\nhm\n</think>\n\nUse kill.</s>[INST] Thanks[/INST]",
        ),
    ),
    (
        GEMMA,
        &[USER],
        None,
        true,
        Ok("<s><start_of_turn>user\nHow do I kill a Python process? \"now\" <b>é<end_of_turn>\n<start_of_turn>model\n"),
    ),
    (GEMMA, &[SYSTEM, USER], None, true, Err("System role not supported")),
    (
        GEMMA,
        &[USER, ASSISTANT, THANKS],
        None,
        true,
        Ok(
            "<s><start_of_turn>user\nHow do I kill a Python process? \"now\" <b>é<end_of_turn>\n<start_of_turn>model\n<think>\nhm\n</think>\n\nUse kill.<end_of_turn>\n<start_of_turn>user\nThanks<end_of_turn>\n<start_of_turn>model\n",
        ),
    ),
    (
        GEMMA_3,
        &[USER],
        None,
        true,
        Ok("<s><start_of_turn>user\nHow do I kill a Python process? \"now\" <b>é<end_of_turn>\n<start_of_turn>model\n"),
    ),
    (
        GEMMA_3,
        &[SYSTEM, USER],
        None,
        true,
        Ok(
            "<s><start_of_turn>user\nBe brief.\n\n\nHow do I kill a Python process? \"now\" <b>é<end_of_turn>\n<start_of_turn>model\n",
        ),
    ),
    (
        GEMMA_3,
        &[USER, ASSISTANT, THANKS],
        None,
        true,
        Ok(
            "<s><start_of_turn>user\nHow do I kill a Python process? \"now\" <b>é<end_of_turn>\n<start_of_turn>model\n<think>\nhm\n</think>\n\nUse kill.<end_of_turn>\n<start_of_turn>user\nThanks<end_of_turn>\n<start_of_turn>model\n",
        ),
    ),
    (
        PHI_3,
        &[USER],
        None,
        true,
        Ok("<|user|>\n How do I kill a Python process? \"now\" <b>é <|end|>\n<|assistant|>\n"),
    ),
    (
        PHI_3,
        &[SYSTEM, USER],
        None,
        true,
        Ok(
            "<|system|>\nBe brief.\n<|end|>\n<|user|>\n How do I kill a Python process? \"now\" <b>é <|end|>\n<|assistant|>\n",
        ),
    ),
    (
        PHI_3,
        &[USER, ASSISTANT, THANKS],
        None,
        true,
        Ok(
            "<|user|>\n How do I kill a Python process? \"now\" <b>é <|end|>\n<|assistant|>\n<think>\nhm\n</think>\n\nUse kill.<|end|>\n<|user|>\nThanks<|end|>\n<|assistant|>\n",
        ),
    ),
    (
        QWEN_2_5,
        &[USER],
        None,
        true,
        Ok(
            "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n How do I kill a Python process? \"now\" <b>é <|im_end|>\n<|im_start|>assistant\n",
        ),
    ),
    (
        QWEN_2_5,
        &[SYSTEM, USER],
        None,
        true,
        Ok(
            "<|im_start|>system\nBe brief.\n<|im_end|>\n<|im_start|>user\n How do I kill a Python process? \"now\" <b>é <|im_end|>\n<|im_start|>assistant\n",
        ),
    ),
    (
        QWEN_2_5,
        &[USER, ASSISTANT, THANKS],
        None,
        true,
        Ok(
            "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n How do I kill a Python process? \"now\" <b>é <|im_end|>\n<|im_start|>assistant\n<think>\nhm\n</think>\n\nUse kill.<|im_end|>\n<|im_start|>user\nThanks<|im_end|>\n<|im_start|>assistant\n",
        ),
    ),
    (
        QWEN_3,
        &[USER],
        None,
        true,
        Ok("<|im_start|>user\n How do I kill a Python process? \"now\" <b>é <|im_end|>\n<|im_start|>assistant\n"),
    ),
    (
        QWEN_3,
        &[SYSTEM, USER],
        None,
        true,
        Ok(
            "<|im_start|>system\nBe brief.\n<|im_end|>\n<|im_start|>user\n How do I kill a Python process? \"now\" <b>é <|im_end|>\n<|im_start|>assistant\n",
        ),
    ),
    (
        QWEN_3,
        &[USER, ASSISTANT, THANKS],
        None,
        true,
        Ok(
            "<|im_start|>user\n How do I kill a Python process? \"now\" <b>é <|im_end|>\n<|im_start|>assistant\nUse kill.<|im_end|>\n<|im_start|>user\nThanks<|im_end|>\n<|im_start|>assistant\n",
        ),
    ),
    (
        CHATML,
        &[USER],
        None,
        true,
        Ok("<|im_start|>user\n How do I kill a Python process? \"now\" <b>é <|im_end|>\n<|im_start|>assistant\n"),
    ),
    (
        CHATML,
        &[SYSTEM, USER],
        None,
        true,
        Ok(
            "<|im_start|>system\nBe brief.\n<|im_end|>\n<|im_start|>user\n How do I kill a Python process? \"now\" <b>é <|im_end|>\n<|im_start|>assistant\n",
        ),
    ),
    (
        CHATML,
        &[USER, ASSISTANT, THANKS],
        None,
        true,
        Ok(
            "<|im_start|>user\n How do I kill a Python process? \"now\" <b>é <|im_end|>\n<|im_start|>assistant\n<think>\nhm\n</think>\n\nUse kill.<|im_end|>\n<|im_start|>user\nThanks<|im_end|>\n<|im_start|>assistant\n",
        ),
    ),
    (ZEPHYR, &[USER], None, true, Ok("<|user|>\n How do I kill a Python process? \"now\" <b>é </s>\n<|assistant|>\n")),
    (
        ZEPHYR,
        &[SYSTEM, USER],
        None,
        true,
        Ok(
            "<|system|>\nBe brief.\n</s>\n<|user|>\n How do I kill a Python process? \"now\" <b>é </s>\n<|assistant|>\n",
        ),
    ),
    (
        ZEPHYR,
        &[USER, ASSISTANT, THANKS],
        None,
        true,
        Ok(
            "<|user|>\n How do I kill a Python process? \"now\" <b>é </s>\n<|assistant|>\n<think>\nhm\n</think>\n\nUse kill.</s>\n<|user|>\nThanks</s>\n<|assistant|>\n",
        ),
    ),
    (
        SMOLLM,
        &[USER],
        None,
        true,
        Ok(
            "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n<|im_start|>user\n How do I kill a Python process? \"now\" <b>é <|im_end|>\n<|im_start|>assistant\n",
        ),
    ),
    (
        SMOLLM,
        &[SYSTEM, USER],
        None,
        true,
        Ok(
            "<|im_start|>system\nBe brief.\n<|im_end|>\n<|im_start|>user\n How do I kill a Python process? \"now\" <b>é <|im_end|>\n<|im_start|>assistant\n",
        ),
    ),
    (
        SMOLLM,
        &[USER, ASSISTANT, THANKS],
        None,
        true,
        Ok(
            "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n<|im_start|>user\n How do I kill a Python process? \"now\" <b>é <|im_end|>\n<|im_start|>assistant\n<think>\nhm\n</think>\n\nUse kill.<|im_end|>\n<|im_start|>user\nThanks<|im_end|>\n<|im_start|>assistant\n",
        ),
    ),
    (
        DEEPSEEK,
        &[USER],
        None,
        true,
        Ok("<s><｜User｜> How do I kill a Python process? \"now\" <b>é <｜Assistant｜><think>\n"),
    ),
    (
        DEEPSEEK,
        &[SYSTEM, USER],
        None,
        true,
        Ok("<s>Be brief.\n<｜User｜> How do I kill a Python process? \"now\" <b>é <｜Assistant｜><think>\n"),
    ),
    (
        DEEPSEEK,
        &[USER, ASSISTANT, THANKS],
        None,
        true,
        Ok(
            "<s><｜User｜> How do I kill a Python process? \"now\" <b>é <｜Assistant｜>\n\nUse kill.<｜end▁of▁sentence｜><｜User｜>Thanks<｜Assistant｜><think>\n",
        ),
    ),
    (OLMO, &[USER], None, true, Ok("<s><|user|>\n How do I kill a Python process? \"now\" <b>é \n<|assistant|>\n")),
    (
        OLMO,
        &[SYSTEM, USER],
        None,
        true,
        Ok("<s><|system|>\nBe brief.\n\n<|user|>\n How do I kill a Python process? \"now\" <b>é \n<|assistant|>\n"),
    ),
    (
        OLMO,
        &[USER, ASSISTANT, THANKS],
        None,
        true,
        Ok(
            "<s><|user|>\n How do I kill a Python process? \"now\" <b>é \n<|assistant|>\n<think>\nhm\n</think>\n\nUse kill.</s>\n<|user|>\nThanks\n<|assistant|>\n",
        ),
    ),
    (
        GRANITE,
        &[USER],
        None,
        true,
        Ok(
            "<|start_of_role|>system<|end_of_role|>Knowledge Cutoff Date: April 2024.\nToday's Date: July 26, 2024.\nYou are Granite, developed by IBM. You are a helpful AI assistant.<|end_of_text|>\n<|start_of_role|>user<|end_of_role|> How do I kill a Python process? \"now\" <b>é <|end_of_text|>\n<|start_of_role|>assistant<|end_of_role|>",
        ),
    ),
    (
        GRANITE,
        &[SYSTEM, USER],
        None,
        true,
        Ok(
            "<|start_of_role|>system<|end_of_role|>Be brief.\n<|end_of_text|>\n<|start_of_role|>user<|end_of_role|> How do I kill a Python process? \"now\" <b>é <|end_of_text|>\n<|start_of_role|>assistant<|end_of_role|>",
        ),
    ),
    (
        GRANITE,
        &[USER, ASSISTANT, THANKS],
        None,
        true,
        Ok(
            "<|start_of_role|>system<|end_of_role|>Knowledge Cutoff Date: April 2024.\nToday's Date: July 26, 2024.\nYou are Granite, developed by IBM. You are a helpful AI assistant.<|end_of_text|>\n<|start_of_role|>user<|end_of_role|> How do I kill a Python process? \"now\" <b>é <|end_of_text|>\n<|start_of_role|>assistant<|end_of_role|><think>\nhm\n</think>\n\nUse kill.<|end_of_text|>\n<|start_of_role|>user<|end_of_role|>Thanks<|end_of_text|>\n<|start_of_role|>assistant<|end_of_role|>",
        ),
    ),
    (
        COHERE,
        &[USER],
        None,
        true,
        Ok(
            "<s><|START_OF_TURN_TOKEN|><|USER_TOKEN|>How do I kill a Python process? \"now\" <b>é<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>",
        ),
    ),
    (
        COHERE,
        &[SYSTEM, USER],
        None,
        true,
        Ok(
            "<s><|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>Be brief.\n<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|><|USER_TOKEN|>How do I kill a Python process? \"now\" <b>é<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>",
        ),
    ),
    (
        COHERE,
        &[USER, ASSISTANT, THANKS],
        None,
        true,
        Ok(
            "<s><|START_OF_TURN_TOKEN|><|USER_TOKEN|>How do I kill a Python process? \"now\" <b>é<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|><think>\nhm\n</think>\n\nUse kill.<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|><|USER_TOKEN|>Thanks<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>",
        ),
    ),
    (
        GPT_OSS,
        &[USER],
        None,
        true,
        Ok(
            "<|start|>system<|message|>You are ChatGPT, a large language model trained by OpenAI.\nKnowledge cutoff: 2024-06\nCurrent date: 2024-07-26\n\nReasoning: medium\n\n# Valid channels: analysis, commentary, final. Channel must be included for every message.<|end|><|start|>user<|message|> How do I kill a Python process? \"now\" <b>é <|end|>x[][]<|start|>assistant",
        ),
    ),
    (
        GPT_OSS,
        &[SYSTEM, USER],
        None,
        true,
        Ok(
            "<|start|>system<|message|>You are ChatGPT, a large language model trained by OpenAI.\nKnowledge cutoff: 2024-06\nCurrent date: 2024-07-26\n\nReasoning: medium\n\n# Valid channels: analysis, commentary, final. Channel must be included for every message.<|end|><|start|>developer<|message|># Instructions\n\nBe brief.\n\n\n<|end|><|start|>user<|message|> How do I kill a Python process? \"now\" <b>é <|end|>x[][]<|start|>assistant",
        ),
    ),
    (
        GPT_OSS,
        &[USER, ASSISTANT, THANKS],
        None,
        true,
        Ok(
            "<|start|>system<|message|>You are ChatGPT, a large language model trained by OpenAI.\nKnowledge cutoff: 2024-06\nCurrent date: 2024-07-26\n\nReasoning: medium\n\n# Valid channels: analysis, commentary, final. Channel must be included for every message.<|end|><|start|>user<|message|> How do I kill a Python process? \"now\" <b>é <|end|><|start|>assistant<|channel|>final<|message|><think>\nhm\n</think>\n\nUse kill.<|end|><|start|>user<|message|>Thanks<|end|>x[][]<|start|>assistant",
        ),
    ),
    (GENERATION, &[USER], None, true, Ok("User:  How do I kill a Python process? \"now\" <b>é \n### Response:\n")),
    (
        GENERATION,
        &[SYSTEM, USER],
        None,
        true,
        Ok("System: Be brief.\n\nUser:  How do I kill a Python process? \"now\" <b>é \n### Response:\n"),
    ),
    (
        GENERATION,
        &[USER, ASSISTANT, THANKS],
        None,
        true,
        Ok(
            "User:  How do I kill a Python process? \"now\" <b>é \n<think>\nhm\n</think>\n\nUse kill.</s>\nUser: Thanks\n### Response:\n",
        ),
    ),
    (WHITESPACE, &[THANKS], None, true, Ok("  a\n  a\nend")),
    (
        PYTHON,
        &[("user", "one two\nthree é")],
        None,
        true,
        Ok(
            "one é ne  é eerht\nowt eno -----\nne two\nthree é b a+b+c\n1 One Two\nThree É 007 *x** 1\n[{\"role\": \"user\", \"content\": \"one two\\nthree é\"}]\n{\n  \"a\": \"<é>&'\",\n  \"b\": [\n    1,\n    {}\n  ]\n}\n{\"k\":[1.5,null,true]}\n0role=4, 1content=15\nFalseTrueNoneTrue[None, 'a', 1.0]\nTrueFalseTrueTrue\n<s>1None<pad><unk>False\n023",
        ),
    ),
    (
        QWEN_3,
        &[USER],
        Some(false),
        true,
        Ok(
            "<|im_start|>user\n How do I kill a Python process? \"now\" <b>é <|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
        ),
    ),
    (
        QWEN_3,
        &[USER],
        Some(true),
        true,
        Ok("<|im_start|>user\n How do I kill a Python process? \"now\" <b>é <|im_end|>\n<|im_start|>assistant\n"),
    ),
    (
        GRANITE,
        &[THANKS],
        Some(true),
        true,
        Ok(
            "<|start_of_role|>system<|end_of_role|>Knowledge Cutoff Date: April 2024.\nToday's Date: July 26, 2024.\nYou are Granite, developed by IBM. You are a helpful AI assistant.\nRespond to every user query in a comprehensive and detailed way. Write your thoughts after 'Here is my thought process:' for each user query.<|end_of_text|>\n<|start_of_role|>user<|end_of_role|>Thanks<|end_of_text|>\n<|start_of_role|>assistant<|end_of_role|>",
        ),
    ),
    (
        MISTRAL,
        &[USER, THANKS],
        None,
        true,
        Err("After the optional system message, conversation roles must alternate user/assistant/user/assistant/..."),
    ),
    (
        LLAMA_2,
        &[ASSISTANT, USER],
        None,
        true,
        Err("Conversation roles must alternate user/assistant/user/assistant/..."),
    ),
    (
        LLAMA_3,
        &[SYSTEM, USER, ASSISTANT],
        None,
        false,
        Ok(
            "<s><|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\nBe brief.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nHow do I kill a Python process? \"now\" <b>é<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n<think>\nhm\n</think>\n\nUse kill.<|eot_id|>",
        ),
    ),
    (
        GPT_OSS,
        &[THANKS, ASSISTANT],
        None,
        false,
        Ok(
            "<|start|>system<|message|>You are ChatGPT, a large language model trained by OpenAI.\nKnowledge cutoff: 2024-06\nCurrent date: 2024-07-26\n\nReasoning: medium\n\n# Valid channels: analysis, commentary, final. Channel must be included for every message.<|end|><|start|>user<|message|>Thanks<|end|><|start|>assistant<|channel|>final<|message|><think>\nhm\n</think>\n\nUse kill.<|return|>x[][]",
        ),
    ),
    (
        QWEN_3,
        &[THANKS, ASSISTANT],
        None,
        false,
        Ok("<|im_start|>user\nThanks<|im_end|>\n<|im_start|>assistant\n<think>\nhm\n</think>\n\nUse kill.<|im_end|>\n"),
    ),
    (GENERATION, &[THANKS, ASSISTANT], None, false, Ok("User: Thanks\n<think>\nhm\n</think>\n\nUse kill.</s>\n\n")),
];

fn compile(source: &str, thinking: Option<bool>) -> Result<Template, ChatError> {
    let tokens = [("bos_token", "<s>"), ("eos_token", "</s>"), ("pad_token", "<pad>"), ("unk_token", "<unk>")];
    let mut globals: Vec<(String, Value)> =
        tokens.iter().map(|(name, text)| ((*name).to_owned(), Value::from(*text))).collect();
    for name in ["enable_thinking", "thinking"] {
        globals.extend(thinking.map(|thinking| (name.to_owned(), Value::from(thinking))));
    }
    let date = Date::new(2024, 7, 26).expect("a day of the calendar");
    Template::compile(source, "`test`", globals, date)
}

fn render(source: &str) -> Result<String, ChatError> {
    compile(source, None)?.render(&[Message::new("user", "Hi")], Content::default(), true)
}

#[test]
fn renders_like_transformers() {
    for (index, (source, turns, thinking, prompt, expected)) in CASES.iter().enumerate() {
        let messages: Vec<Message> = turns.iter().map(|(role, content)| Message::new(*role, *content)).collect();
        let template = compile(source, *thinking).expect("the template parses");
        let got = template.render(&messages, Content::default(), *prompt).map_err(|error| match error {
            ChatError::TemplateRaised { message, .. } => message,
            other => panic!("case {index}: {other}\n{source}"),
        });
        let got = got.as_deref().map_err(String::as_str);
        assert_eq!(got, *expected, "case {index}: {turns:?}\n{source}");
    }
}

#[test]
fn a_template_that_mentions_the_date_says_so() {
    let uses_date = |source| compile(source, None).expect("parses").uses_date();
    assert!(uses_date(LLAMA_3) && uses_date(GPT_OSS));
    assert!(!uses_date(CHATML));
}

#[test]
fn syntax_errors_name_the_place_and_the_line() {
    let error = compile("a\n\n{% if x %}\n{{ }", None).expect_err("does not parse");
    assert!(matches!(error, ChatError::TemplateSyntax { line: 4, .. }), "{error:?}");
    assert!(error.to_string().contains("`test` does not parse at line 4"), "{error}");
    assert!(compile("{% generation %}", None).is_err());
}

#[test]
fn failures_while_rendering_name_the_line() {
    let error = render("a\n{{ messages[0].nope.x }}").expect_err("undefined");
    assert!(matches!(error, ChatError::TemplateFailed { line: 2, .. }), "{error:?}");
    let error = render("{{ raise_exception('not ' ~ 1) }}").expect_err("raised");
    assert!(matches!(&error, ChatError::TemplateRaised { message, .. } if message == "not 1"), "{error:?}");
    // Raised inside of a macro, so wrapped.
    let error = render("{% macro f() %}{{ raise_exception('deep') }}{% endmacro %}{{ f() }}");
    assert!(matches!(&error, Err(ChatError::TemplateRaised { message, .. }) if message == "deep"), "{error:?}");
}

/// Templates that would overflow the stack, fill the memory or never end, each with words of its refusal.
#[test]
#[cfg_attr(debug_assertions, ignore = "slow: `cargo test --release`, or `-- --include-ignored`")]
fn what_a_template_builds_is_bounded() {
    let many = |statement: &str, times: usize| statement.repeat(times);
    let doubled = format!("{{% set l = [1] %}}{}{{{{ l | length }}}}", many("{% set l = l + l %}", 40));
    let tree = format!("{{% set l = [1] %}}{}{{{{ l == l + [] }}}}", many("{% set l = [l, l] %}", 40));
    let by_macro = "{% macro f(n, l) %}{% if n %}{{ f(n - 1, [l, l, l, l, l, l, l, l, l, l, l, l, l, l, l, l]) }}\
                    {% else %}{{ l | string | length }}{% endif %}{% endmacro %}{{ f(12, 'aaaaaaaaaaaaaaaa') }}";
    for (source, words) in [
        ("{% set ns = namespace() %}{% set ns.x = ns %}{{ ns }}", "kept in a namespace"),
        ("{% set ns = namespace() %}{% set ns.x = [{'a': ns}] %}{{ ns ~ '' }}", "kept in a namespace"),
        ("{% set a = namespace() %}{% set b = namespace(x=a) %}{% set a.x = b %}{{ a == b }}", "kept in a namespace"),
        ("{% set a = namespace() %}{% set a.x, b = a, 1 %}{{ a }}", "kept in a namespace"),
        ("{% set a = namespace() %}{% set a.x | default(a, true) %}{% endset %}{{ a }}", "kept in a namespace"),
        (
            "{% set ns = namespace(x=1) %}{% for i in range(50000) %}{% set ns.x = [ns.x] %}{% endfor %}",
            "nested more than",
        ),
        ("{% set ns = namespace(l=[1]) %}{% for i in range(60) %}{% set ns.l = ns.l + ns.l %}{% endfor %}", "items"),
        (&doubled, "items"),
        (&tree, "items"),
        (by_macro, ""),
    ] {
        let error = render(source).expect_err(source).to_string();
        assert!(error.contains(words), "{source}: {error}");
        assert!(error.len() < 1000);
    }
    // what templates do keep
    let kept = "{% set ns = namespace(last=-1, seen=[]) %}{% for m in messages %}{% set ns.seen = ns.seen + [m] %}\
                {% set ns.last = loop.index0 %}{% endfor %}{% set all = ns %}{{ all.seen[0].role }} {{ all.last }}";
    assert_eq!(render(kept).unwrap(), "user 0");
}

#[test]
#[cfg_attr(debug_assertions, ignore = "slow: `cargo test --release`, or `-- --include-ignored`")]
fn a_template_that_takes_too_long_is_stopped() {
    // two trees of ten levels, each a list eight times in a list, compared leaf by leaf
    let slow = "{% macro g(n, a, b) %}{% if n %}{{ g(n - 1, [a, a, a, a, a, a, a, a], [b, b, b, b, b, b, b, b]) }}\
                {% else %}{{ a == b }}{% endif %}{% endmacro %}{{ g(11, [1], [1]) }}";
    let error = render(slow).expect_err("endless");
    assert!(matches!(error, ChatError::TemplateUnbounded { .. }), "{error:?}");
}

#[test]
fn content_goes_in_as_the_text_or_as_parts() {
    const PARTS: &str = "{% for m in messages %}<{{ m.role }}>{% for c in m.content %}{% if c.type == 'text' %}\
                         {{ c.text }}{% endif %}{% endfor %}{% endfor %}";
    const BY_INDEX: &str = "{% for m in messages %}<{{ m.role }}>{{ m['content'][0]['text'] }}{% endfor %}";
    const SYSTEM_TEXT: &str = "{% for m in messages %}<{{ m.role }}>{% if m.role == 'system' %}{{ m.content + '' }}\
                               {% else %}{% for c in m.content %}{{ c.text }}{% endfor %}{% endif %}{% endfor %}";
    const EITHER: &str = "{% for m in messages %}<{{ m.role }}>{% if m.content is string %}{{ m.content }}{% else %}\
                          {% for c in m.content %}[{{ c.text }}]{% endfor %}{% endif %}{% endfor %}";
    let turns = [Message::new("system", "Short."), Message::new("user", "Hi"), Message::new("assistant", "Yes")];
    for source in [PARTS, BY_INDEX, SYSTEM_TEXT, EITHER] {
        let template = compile(source, None).unwrap();
        let content = Content::of(&template).unwrap();
        assert_eq!(
            template.render(&turns, content, false).unwrap(),
            "<system>Short.<user>Hi<assistant>Yes",
            "{source}"
        );
    }
    let plain = compile(CHATML, None).unwrap();
    assert_eq!(Content::of(&plain).unwrap(), Content::default());
}

#[test]
fn hostile_templates_are_errors() {
    let nested = "{% set ns = namespace(x=1) %}{% for i in range(50000) %}{% set ns.x = [ns.x] %}\
                  {% endfor %}{{ ns.x | tojson }}";
    let minus = format!("{{{{ {}1 }}}}", "-".repeat(200_000));
    let parentheses = format!("{{{{ {}1 }}}}", "(".repeat(100_000));
    for source in [
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% for i in [1] recursive %}{{ loop([1]) }}{% endfor %}",
        "{{ 'a' * 10000000000 }}",
        "{{ 'a'.ljust(10000000000) }}",
        "{{ range(10000000000) | list }}",
        "{{ 'a'.partition('') }}",
        "{{ [1].append(2) }}",
        "{% include 'tokenizer.json' %}",
        "{{ 1 / 0 }}",
        nested,
        &minus,
        &parentheses,
    ] {
        let start: String = source.chars().take(60).collect();
        assert!(render(source).is_err(), "{start}");
    }
    // As deep as a template of the longest length can be.
    let deep = format!("{{{{ {}1 }}}}", "-".repeat(MAX_TEMPLATE_BYTES - 16));
    assert!(render(&deep).is_ok());
}
