require "json"
puts JSON.parse('{"hello": "ruby"}').map { |greeting, name| "#{greeting} from #{name}" }
